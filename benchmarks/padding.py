"""Dynamic padding against padding every text to one length, with the same encoder on the same texts.

    python benchmarks/padding.py nfcorpus

The rival pads batches of 32, in input order, to 512 tokens, as a tokenizer with `padding="max_length"` does. Two kinds
of text: documents, and short ones (titles and queries). In turns; medians of the rounds; tokenizing is left out.
Writes benchmarks/results/padding.json.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import in_turns, print_rows, quick_option, texts_by_kind, write_results

from lm_retrieval.checkpoint import find_checkpoint
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
@quick_option
def main(collection: Path, encoders: tuple[str, ...], dtype: Any, count: int, rounds: int, quick: bool) -> None:
    """Times both ways in turns."""
    count, rounds = (8, 1) if quick else (count, rounds)
    configure_torch()
    rows: list[dict[str, Any]] = []
    for name in encoders:
        encoder = Encoder.load(find_checkpoint(name), dtype=dtype)
        for kind, texts in texts_by_kind(collection).items():
            # one window each: both sides do the same work
            token_ids = [ids[: encoder.max_seq_length] for ids in encoder.tokenizer.encode_batch(texts[:count])]
            ways = {
                "dynamic": partial(encoder.encode_tokens, token_ids),
                "padded": partial(padded_vectors, encoder, token_ids),
            }
            seconds = {way: statistics.median(times) for way, times in in_turns(ways, rounds=rounds).items()}
            agreement = float((ways["dynamic"]() * ways["padded"]()).sum(axis=1).min())
            rows.append(
                {
                    "encoder": name,
                    "texts": kind,
                    "mean_tokens": round(sum(map(len, token_ids)) / len(token_ids), 1),
                    **{f"{way}_seconds": round(value, 4) for way, value in seconds.items()},
                    "ratio": round(seconds["padded"] / seconds["dynamic"], 1),
                    "smallest_cosine": round(agreement, 4),
                }
            )
    write_results("padding", {"collection": collection.name, "rounds": rounds, "rows": rows}, quick=quick)
    print_rows(
        ["encoder", "texts", "dynamic, s", "padded to 512, s", "ratio", "smallest cosine between the two"],
        [
            (
                row["encoder"],
                f"{row['texts']}, {row['mean_tokens']} tokens",
                f"{row['dynamic_seconds']:.3f}",
                f"{row['padded_seconds']:.3f}",
                row["ratio"],
                row["smallest_cosine"],
            )
            for row in rows
        ],
        left=2,
    )


@torch.inference_mode()
def padded_vectors(encoder: Encoder, token_ids: list[Any]) -> np.ndarray:
    """(N, D) unit vectors, every text padded to 512 tokens."""
    pooling = encoder.checkpoint.pooling
    assert pooling is not None
    parts = []
    for start in range(0, len(token_ids), BATCH):
        chosen = token_ids[start : start + BATCH]
        ids = torch.zeros(len(chosen), PADDED_TOKENS, dtype=torch.int64)
        for row, text in enumerate(chosen):
            ids[row, : len(text)] = torch.from_numpy(text)
        lengths = torch.tensor([len(text) for text in chosen])
        vectors = pooling(encoder.model(ids).hidden, ids, lengths).float()
        parts.append(torch.nn.functional.normalize(vectors, dim=1).numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
