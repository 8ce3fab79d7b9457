r"""What 1 million to 1 billion passages would take, from what this machine measures.

    python benchmarks/capacity.py pairs/ --text-column positive

Cuts the corpus into pieces of at most 45 words, indexes `--passages` of them on one thread, builds each kind of FAISS
index, asks single queries, and writes the constants to benchmarks/results/capacity.json and the plan to
benchmarks/capacity.md. `--from-constants` writes the plan again without measuring.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from common import RESULTS, quick_option, table_lines, write_results
from growth import write_pieces

from lm_retrieval.artifacts import folder_bytes
from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.index import vectors
from lm_retrieval.index.builder import SHARD_CHUNKS, build_index
from lm_retrieval.index.shards import plan
from lm_retrieval.index.store import EarlierPlaces, Store
from lm_retrieval.runtime import available_cores, configure_torch

PLAN = Path(__file__).with_name("capacity.md")
SIZES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
FACTORIES = ("Flat", "HNSW32", "IVF{cells},SQ8", "IVF{cells},PQ64")
QUERIES = 100
HOURS = 8
REPEATS = 3
Facts = dict[str, Any]


class Choice(NamedTuple):
    """What to use for so many passages."""

    factory: str
    engine: str
    served_from: str


CHOICES = {
    1_000_000: Choice("IVF{cells},SQ8", "local", "this machine"),
    10_000_000: Choice("IVF{cells},SQ8", "local, or a few Ray workers", "this machine"),
    100_000_000: Choice("IVF{cells},PQ64", "Ray", "one machine with that memory, or Milvus"),
    1_000_000_000: Choice("IVF{cells},PQ64", "Ray, GPUs if there are any", "a Milvus cluster"),
}


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--text-column", default=None)
@click.option("--encoder", default="lstm-base")
@click.option("--passages", default=100_000, show_default=True)
@click.option("--from-constants", is_flag=True, help="Only write the plan again.")
@quick_option
def main(
    corpus: Path | None, text_column: str | None, encoder: str, passages: int, from_constants: bool, quick: bool
) -> None:
    """Measures constants and writes the plan."""
    if from_constants:
        facts = json.loads((RESULTS / "capacity.json").read_text())
    else:
        if corpus is None:
            raise click.UsageError("a corpus to measure with is needed")
        with tempfile.TemporaryDirectory() as folder:
            facts = measure(corpus, text_column, encoder, min(passages, 2_000) if quick else passages, Path(folder))
        write_results("capacity", facts, quick=quick)
    text = "\n".join(document(facts)) + "\n"
    if quick:
        print(text)
    else:
        PLAN.write_text(text)
        click.echo(f"wrote {PLAN}")


def measure(corpus: Path, text_column: str | None, encoder: str, passages: int, folder: Path) -> Facts:
    """Seconds and bytes per passage, on one thread."""
    configure_torch(1)
    source, index = folder / "pieces.jsonl", folder / "index"
    write_pieces(corpus, text_column, source, passages)
    loaded = Encoder.load(find_checkpoint(encoder), device="cpu", dtype="auto", threads=1)
    report = build_index(open_corpus(source), encoder=loaded, output=index)
    facts: Facts = {
        "encoder": encoder,
        "passages": report.chunks,
        "tokens_per_passage": report.tokens / report.chunks,
        "cores_here": available_cores(),
        "seconds": {stage: report.seconds[stage] / report.chunks for stage in ("tokenize", "encode", "write", "bm25")},
        "bytes": {name: folder_bytes(index / name) / report.chunks for name in ("embeddings", "documents", "lexical")},
        "indexes": {},
    }
    facts["seconds"]["read"] = median_seconds(lambda: read(source, loaded)) / report.chunks
    facts["gpu_seconds"] = gpu_seconds(source, loaded)
    store = Store(index)
    questions = np.concatenate([part[::50] for part in store.vector_shards()])[:QUERIES]
    for factory in FACTORIES:
        facts["indexes"][factory] = measure_index(folder / "vectors.faiss", store, factory, questions)
    return facts


def read(source: Path, encoder: Encoder) -> None:
    """What the machine that plans the shards does."""
    documents = open_corpus(source).documents()
    for _ in plan(
        documents, earlier=EarlierPlaces(None), shard_chunks=SHARD_CHUNKS, window_tokens=encoder.max_seq_length
    ):
        pass


def gpu_seconds(source: Path, encoder: Encoder) -> float | None:
    """Seconds of a GPU per passage, where there is one."""
    import torch

    if not torch.cuda.is_available():
        return None
    on_gpu = Encoder.load(encoder.checkpoint.path, device="cuda", dtype="auto")
    texts = [document.content for document in islice(open_corpus(source).documents(), 50_000)]
    token_ids = on_gpu.tokenizer.encode_batch(texts)
    return median_seconds(lambda: on_gpu.encode_tokens(token_ids, max_batch_tokens=1 << 18)) / len(texts)


def measure_index(path: Path, store: Store, factory: str, questions: Any) -> Facts:
    """Bytes and time for a vector more, what learning cells and codes takes, recall, and the time of a query.

    Built of half the vectors and of all: the difference is what vectors cost.
    """
    count = sum(len(part) for part in store.vector_shards())
    named = factory.format(cells=vectors.cells_for(count))
    figures = []
    for part in (count // 2, count):
        started = time.perf_counter()
        build(path, store, named, part)
        figures.append((part, time.perf_counter() - started, path.stat().st_size))
    (half, first_seconds, first_bytes), (_, seconds, size) = figures
    each_second = max(0.0, seconds - first_seconds) / (count - half)
    index = vectors.VectorIndex.read(path)
    times = []
    for question in questions:
        started = time.perf_counter()
        index.search(question[None], 10)
        times.append(time.perf_counter() - started)
    return {
        "factory": named,
        "bytes": (size - first_bytes) / (count - half),
        "learning_seconds": max(0.0, seconds - count * each_second),
        "adding_seconds": each_second,
        "query_seconds": float(np.median(times)),
        "recall": vectors.recall(path, shards=store.vector_shards, count=count),
    }


def build(path: Path, store: Store, factory: str, count: int) -> None:
    """Builds an index of the first vectors."""

    def first() -> Iterator[Any]:
        left = count
        for part in store.vector_shards():
            yield part[:left]
            left -= len(part[:left])
            if not left:
                return

    dim = next(store.vector_shards()).shape[1]
    vectors.build(path, shards=first, count=count, dim=dim, factory=factory, memory_bytes=8 << 30)


def median_seconds(work: Callable[[], object]) -> float:
    """Of three runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def document(facts: Facts) -> Iterator[str]:
    """The plan as Markdown."""
    seconds, measured = facts["seconds"], facts["passages"]
    core = sum(seconds[stage] for stage in ("tokenize", "encode", "write"))
    yield "# What larger collections take"
    yield ""
    yield "Made by `python benchmarks/capacity.py` from what one core of one machine measured:"
    yield f"{measured:,} passages of {facts['tokens_per_passage']:.0f} tokens on average, encoder `{facts['encoder']}`."
    yield f"**Everything beyond {measured:,} passages is extrapolated**: time and bytes in proportion to the passages;"
    yield "a query in proportion to the vectors it looks at (all of them in Flat, a sixteenth in IVF); adding to IVF in"
    yield "proportion to its cells, too; learning cells, to their number and that of the vectors they are learned from."
    yield ""
    yield "## Measured"
    yield ""
    yield from table_lines(
        ("of a passage", "one core"),
        [
            ("read and put into shards (one process, whatever the engine)", rate(seconds["read"])),
            ("tokenize, encode, write", rate(core)),
            ("encode on a GPU", rate(facts["gpu_seconds"]) if facts["gpu_seconds"] else "not measured: no GPU here"),
            ("BM25", rate(seconds["bm25"])),
            ("vectors as Parquet", f"{facts['bytes']['embeddings']:,.0f} bytes"),
            ("texts", f"{facts['bytes']['documents']:,.0f} bytes"),
            ("BM25", f"{facts['bytes']['lexical']:,.0f} bytes"),
        ],
    )
    yield ""
    yield from table_lines(
        ("index", "bytes a vector", "added", "cells and codes learned in, s", "recall@10", "a query, ms"),
        [
            (
                found["factory"],
                f"{found['bytes']:,.0f}",
                rate(found["adding_seconds"]),
                f"{found['learning_seconds']:.1f}",
                f"{found['recall']:.3f}",
                f"{1000 * found['query_seconds']:.2f}",
            )
            for found in facts["indexes"].values()
        ],
    )
    yield ""
    yield "## The plan"
    yield ""
    yield from table_lines(
        (
            "passages",
            "core hours to encode",
            f"workers of one core for {HOURS} h",
            "reading, h",
            "building FAISS and BM25, core hours",
            "disk, GB",
            "index in memory, GB",
            "a query on one core, ms",
            "index",
            "engine",
            "served from",
        ),
        [plan_row(size, core, facts) for size in SIZES],
    )
    yield ""
    yield from NOTES


def plan_row(size: int, core: float, facts: Facts) -> tuple[str, ...]:
    """The plan for so many passages."""
    choice = CHOICES[size]
    found = facts["indexes"][choice.factory]
    hours = size * core / 3600
    disk = size * (sum(facts["bytes"].values()) + found["bytes"])
    more_cells = vectors.cells_for(size) / vectors.cells_for(facts["passages"])
    building = size * (facts["seconds"]["bm25"] + found["adding_seconds"] * more_cells)
    building = (building + learning_seconds(size, found, facts)) / 3600
    return (
        f"{size:,}",
        f"{hours:,.1f}",
        f"{max(1, math.ceil(hours / HOURS)):,}",
        f"{size * facts['seconds']['read'] / 3600:,.1f}",
        f"{building:,.1f}",
        f"{disk / 1e9:,.0f}",
        f"{size * found['bytes'] / 1e9:,.1f}",
        f"{1000 * found['query_seconds'] * size / facts['passages']:,.0f}",
        choice.factory.format(cells=vectors.cells_for(size)),
        choice.engine,
        choice.served_from,
    )


def learning_seconds(size: int, found: Facts, facts: Facts) -> float:
    """Cells take time in proportion to their number and that of the vectors to learn from; codes, to the latter."""
    here, there = vectors.cells_for(facts["passages"]), vectors.cells_for(size)
    points = vectors.training_points(there) / vectors.training_points(here)
    cells = facts["indexes"]["IVF{cells},SQ8"]["learning_seconds"]
    return float(points * (cells * there / here + max(0.0, found["learning_seconds"] - cells)))


NOTES = (
    "- *Reading* is one process in every engine: it gives documents their ids and cuts shards. Where it takes longer",
    "  than the workers do, more workers do not help; split the corpus, and index the parts.",
    "- The index is memory-mapped: with less memory than the table says a query waits for the disk.",
    "- The cells of an IVF index are learned from at most 262,144 vectors (fewer with a small `--max-memory`). Beyond",
    "  10 million passages that is few for each cell, and recall will be lower than here; `lmr embed` says how low.",
    "- BM25 holds its vocabulary and eight bytes for each document in memory, whatever `--max-memory` says; finding",
    "  repeated ids and texts takes about 300 bytes a document while the corpus is read.",
    "- A query's time is that of FAISS. BM25 adds what the postings of its words take, also in proportion.",
    "- At a billion passages a query looks at 62 million codes: spread the vectors over the nodes of a Milvus cluster,",
    "  which look side by side.",
)


def rate(seconds: float) -> str:
    """Passages in a second."""
    return f"{1 / seconds:,.0f} a second" if seconds else "too fast to measure"


if __name__ == "__main__":
    main()
