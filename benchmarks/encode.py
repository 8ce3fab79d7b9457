"""Documents per second, text in → vectors out, of our encoders and of sentence-transformers models.

    python benchmarks/encode.py --encoder lstm-base --encoder transformer-base \
        --sentence-transformer MiniLM=path/to/all-MiniLM-L6-v2 nfcorpus

Two kinds of text: documents, and short ones (titles and queries). All systems encode the same texts, in turns, so that
whatever else the machine does strikes all of them; each figure is the median of the rounds. Tokenizing included. Writes
benchmarks/results/encode.json and prints the Markdown table; the first peer is what the ratios refer to.
"""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from quality import write_results

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.runtime import configure_torch

Encode = Callable[[list[str]], Any]


@click.command()
@click.argument("collection", type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "encoders", multiple=True, default=["lstm-base"])
@click.option("--dtype", "dtypes", multiple=True, default=["float32", "bfloat16"])
@click.option("--sentence-transformer", "peers", multiple=True, metavar="NAME=PATH", help="A peer; repeatable.")
@click.option("--documents", default=256, help="Texts of each kind that a peer encodes.")
@click.option("--factor", default=8, help="Our encoders get so many times more, for a round long enough to time.")
@click.option("--rounds", default=5)
@click.option("--threads", type=int, default=None)
def main(
    collection: Path,
    encoders: tuple[str, ...],
    dtypes: tuple[Any, ...],
    peers: tuple[str, ...],
    documents: int,
    factor: int,
    rounds: int,
    threads: int | None,
) -> None:
    """Times all systems in turns."""
    configure_torch(threads)
    corpus = open_corpus(collection)
    long = [document.text for document in corpus.documents() if document.text]
    short = [document.title for document in corpus.documents() if document.title]
    short += [query.text for query in corpus.queries()]
    random.Random(0).shuffle(long)
    random.Random(0).shuffle(short)
    systems: dict[str, tuple[Encode, int]] = {}
    for peer in peers:
        name, _, folder = peer.partition("=")
        for dtype in ("float32", "bfloat16"):
            systems[f"{name} {dtype}"] = (_peer(folder, dtype), documents)
    for name in encoders:
        for dtype in dtypes:
            encoder = Encoder.load(find_checkpoint(name), dtype=dtype, threads=threads)
            systems[f"{name} {dtype}"] = (encoder.encode, documents * factor)
    rows = []
    for kind, texts in (("documents", long), ("short texts", short)):
        characters = sum(map(len, texts)) / len(texts)
        times = _timed(systems, texts, rounds)
        first = next(iter(systems))
        for name, rates in times.items():
            rows.append(
                {
                    "texts": kind,
                    "mean_characters": round(characters),
                    "system": name,
                    "per_second": round(statistics.median(rates), 1),
                    "slowest": round(min(rates), 1),
                    "fastest": round(max(rates), 1),
                    "ratio": round(statistics.median(rates) / statistics.median(times[first]), 1),
                }
            )
    write_results("encode", {"collection": corpus.name, "rounds": rounds, "rows": rows})
    print(f"| texts | system | texts/s (slowest to fastest round) | ratio to {next(iter(systems))} |")
    print("|---|---|--:|--:|")
    for row in rows:
        rate = f"{row['per_second']:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f})"
        print(
            f"| {row['texts']}, {row['mean_characters']} characters | {row['system']} | {rate} | {row['ratio']:.1f} |"
        )


def _timed(systems: dict[str, tuple[Encode, int]], texts: list[str], rounds: int) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(rounds + 1):
        for name, (encode, count) in systems.items():
            chosen = texts[:count]
            started = time.perf_counter()
            encode(chosen)
            if number:  # the first round warms up
                rates[name].append(len(chosen) / (time.perf_counter() - started))
    return rates


def _peer(folder: str, dtype: str) -> Encode:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", local_files_only=True).to(getattr(torch, dtype))
    return lambda texts: model.encode(texts, show_progress_bar=False, normalize_embeddings=True, convert_to_tensor=True)


if __name__ == "__main__":
    main()
