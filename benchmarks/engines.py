r"""Encoding by engine and by number of workers: `lmr embed` in one process, in two, and on Ray.

    python benchmarks/engines.py pairs/ --text-column positive --passages 40000

Cuts the corpus into pieces of at most 45 words and indexes them with each engine in turn, `--rounds` times. Shown is
the time until the last shard is written (workers started, FAISS and BM25 left out), how much of it went by before the
first, and the passages a second from then on; the vectors are compared.
Writes benchmarks/results/engines.json.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import print_rows, quick_option, spread, write_results
from growth import write_pieces

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index.builder import build_index
from lm_retrieval.index.engines import Engine, Processes, Site, ThisProcess
from lm_retrieval.index.shards import Outcome, Work
from lm_retrieval.index.store import Store
from lm_retrieval.runtime import available_cores, configure_torch
from lm_retrieval.scale.ray_data import RayEngine

SHARD_CHUNKS = 1024


class Timed:
    """An engine that notes when it began, when its first shard came and when its last."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.first = self.all = 0.0

    def run(self, works: Iterator[Work], *, site: Site, encoder: Encoder) -> Iterator[Outcome]:
        """As the engine."""
        started = time.perf_counter()
        for outcome in self.engine.run(works, site=site, encoder=encoder):
            self.first = self.first or time.perf_counter() - started
            yield outcome
        self.all = time.perf_counter() - started


def engines(cores: int) -> dict[str, tuple[int, Engine]]:
    """Threads of this process, and the engine, by name."""
    found: dict[str, tuple[int, Engine]] = {"one process, 1 thread": (1, ThisProcess())}
    for count in sorted({2, cores} - {1}):
        if count <= cores:
            found[f"one process, {count} threads"] = (count, ThisProcess())
            found[f"{count} processes"] = (count, Processes(["cpu"] * count))
    for count in sorted({1, 2, cores}):
        if count <= cores:
            found[f"Ray, {count} worker{'s' * (count > 1)}"] = (1, RayEngine(workers=count))
    return found


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--text-column", default=None)
@click.option("--encoder", default="lstm-base")
@click.option("--passages", default=40_000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@quick_option
def main(corpus: Path, text_column: str | None, encoder: str, passages: int, rounds: int, quick: bool) -> None:
    """Measures every engine in every round."""
    if quick:
        passages, rounds = min(passages, 1_000), 1
    seconds: dict[str, list[tuple[float, float]]] = {}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pieces.jsonl"
        write_pieces(corpus, text_column, source, passages)
        expected: Any = None
        for _ in range(rounds):
            for name, (threads, engine) in engines(available_cores()).items():
                configure_torch(threads)
                timed, output = Timed(engine), Path(folder) / "index"
                loaded = Encoder.load(find_checkpoint(encoder), device="cpu", dtype="auto", threads=threads)
                build_index(open_corpus(source), encoder=loaded, output=output, shard_chunks=SHARD_CHUNKS, engine=timed)
                vectors = np.concatenate(list(Store(output).vector_shards()))
                expected = vectors if expected is None else expected
                differences[name] = max(differences.get(name, 0.0), float(np.abs(vectors - expected).max()))
                seconds.setdefault(name, []).append((timed.first, timed.all))
                shutil.rmtree(output)
    rows = [
        {
            "engine": name,
            "passages": passages,
            "first_shard_seconds": [first for first, _ in times],
            "seconds": [last for _, last in times],
            "largest_difference": differences[name],
        }
        for name, times in seconds.items()
    ]
    write_results("engines", rows, quick=quick)
    print_rows(
        ("engine", "s, median (range)", "of them until the first shard", "then passages/s", "largest difference"),
        [
            (
                row["engine"],
                spread(row["seconds"]),
                f"{statistics.median(row['first_shard_seconds']):.1f}",
                f"{afterwards(row):,.0f}",
                f"{row['largest_difference']:.1g}",
            )
            for row in rows
        ],
    )


def afterwards(row: dict[str, Any]) -> float:
    """Passages a second once the workers run."""
    times = zip(row["first_shard_seconds"], row["seconds"], strict=True)
    rest = row["passages"] - SHARD_CHUNKS
    return statistics.median(rest / max(1e-9, last - first) for first, last in times)


if __name__ == "__main__":
    main()
