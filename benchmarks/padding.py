"""Dynamic padding against padding every text to one length, with the same encoder on the same texts.

    python benchmarks/padding.py --encoder lstm-base --encoder transformer-base nfcorpus

The rival pads batches of 32, in input order, to 512 tokens, as a tokenizer with `padding="max_length"` does. Two kinds
of text: documents, and short ones (titles and queries). In turns; medians of the rounds; tokenizing is left out.
Writes benchmarks/results/padding.json and prints the Markdown table.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from quality import write_results

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.runtime import configure_torch

PADDED_TOKENS = 512
BATCH = 32


@click.command()
@click.argument("collection", type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "encoders", multiple=True, default=["lstm-base", "transformer-base"])
@click.option("--dtype", default="auto")
@click.option("--texts", "count", default=256)
@click.option("--rounds", default=5)
def main(collection: Path, encoders: tuple[str, ...], dtype: Any, count: int, rounds: int) -> None:
    """Times both ways in turns."""
    configure_torch()
    corpus = open_corpus(collection)
    long = [document.text for document in corpus.documents() if document.text]
    short = [document.title for document in corpus.documents() if document.title]
    short += [query.text for query in corpus.queries()]
    rows = []
    for name in encoders:
        encoder = Encoder.load(find_checkpoint(name), dtype=dtype)
        for kind, texts in (("documents", long), ("short texts", short)):
            random.Random(0).shuffle(texts)
            # one window each: both sides do the same work
            token_ids = [ids[: encoder.max_seq_length] for ids in encoder.tokenizer.encode_batch(texts[:count]) if ids]
            ours, padded = [], []
            for number in range(rounds + 1):
                started = time.perf_counter()
                first = encoder.encode_tokens(token_ids)
                between = time.perf_counter()
                second = padded_vectors(encoder, token_ids)
                ended = time.perf_counter()
                if number:  # the first round warms up
                    ours.append(between - started)
                    padded.append(ended - between)
            rows.append(
                {
                    "encoder": name,
                    "texts": kind,
                    "mean_tokens": round(sum(map(len, token_ids)) / len(token_ids), 1),
                    "dynamic_seconds": round(statistics.median(ours), 3),
                    "padded_seconds": round(statistics.median(padded), 3),
                    "ratio": round(statistics.median(padded) / statistics.median(ours), 1),
                    "smallest_cosine": round(float((first * second).sum(axis=1).min()), 4),
                }
            )
    write_results("padding", {"collection": corpus.name, "rounds": rounds, "texts": count, "rows": rows})
    print("| encoder | texts | dynamic, s | padded to 512, s | ratio | smallest cosine between the two |")
    print("|---|---|--:|--:|--:|--:|")
    for row in rows:
        what = f"{row['texts']}, {row['mean_tokens']} tokens"
        figures = f"{row['dynamic_seconds']:.3f} | {row['padded_seconds']:.3f} | {row['ratio']:.1f}"
        print(f"| {row['encoder']} | {what} | {figures} | {row['smallest_cosine']:.4f} |")


@torch.inference_mode()
def padded_vectors(encoder: Encoder, token_ids: list[list[int]]) -> np.ndarray:
    """(N, D) unit vectors, every text padded to 512 tokens."""
    model, pooling = encoder.model, encoder.checkpoint.pooling
    assert pooling is not None
    parts = []
    for start in range(0, len(token_ids), BATCH):
        chosen = token_ids[start : start + BATCH]
        ids = torch.zeros(len(chosen), PADDED_TOKENS, dtype=torch.int64)
        for row, text in enumerate(chosen):
            ids[row, : len(text)] = torch.tensor(text)
        lengths = torch.tensor([len(text) for text in chosen])
        vectors = pooling(model(ids).hidden, ids, lengths).float()
        parts.append(torch.nn.functional.normalize(vectors, dim=1).numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
