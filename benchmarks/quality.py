"""nDCG@10 of every system on several judged collections, in one table.

    python benchmarks/quality.py --encoder lstm-base --encoder transformer-base --encoder wikitext2-lstm:whiten \
        --sentence-transformer MiniLM=path/to/all-MiniLM-L6-v2 --results quality corpora/cranfield corpora/python-docs

A row per system, a column per collection; the same figures as `lmr evaluate COLLECTION` gives one by one. An encoder
may carry a postprocess (`name:none`, `name:center`, `name:whiten`) to be used instead of its own. Encoders named
`name-seed-2`, `name-seed-3`, … share the row of `name`: the median, and the range. Writes
benchmarks/results/RESULTS.json and prints the Markdown table.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import print_rows, quick_option, spread, write_results
from numpy.typing import NDArray

from lm_retrieval.checkpoint import find_checkpoint
from lm_retrieval.corpus import Corpus, open_corpus
from lm_retrieval.encoding.encoder import Encoder
from lm_retrieval.evaluation.evaluator import DEFAULT_MEASURES, evaluate
from lm_retrieval.evaluation.similarity import ranked_by_similarity
from lm_retrieval.experiment import DEPTH, encoder_variants, run_experiment
from lm_retrieval.index.builder import build_index
from lm_retrieval.records import Qrels
from lm_retrieval.runtime import configure_torch
from lm_retrieval.search import Mode, Searcher
from lm_retrieval.training.teacher import CachedTeacher, SentenceTransformerTeacher

TEACHERS = Path("checkpoints") / ".peers"
Rows = dict[str, dict[str, float]]


@click.command()
@click.argument("collections", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--encoder", "encoders", multiple=True, help="NAME or NAME:POSTPROCESS; repeatable.")
@click.option("--sentence-transformer", "peers", multiple=True, metavar="NAME=PATH", help="A peer; repeatable.")
@click.option("--rerank", is_flag=True, help="Also hybrid reordered by each encoder's language model.")
@click.option("--split", default="test")
@click.option("--results", default="quality", help="Name of the JSON file.")
@quick_option
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", help="of the encoders' arithmetic"
)
def main(
    collections: tuple[Path, ...],
    encoders: tuple[str, ...],
    peers: tuple[str, ...],
    rerank: bool,
    split: str,
    results: str,
    quick: bool,
    dtype: Any,
) -> None:
    """Evaluates every collection and prints one table."""
    configure_torch()
    columns: dict[str, Rows] = {}
    for path in collections:
        corpus = open_corpus(path)
        started = time.perf_counter()
        variants = [variant for name in encoders for variant in load_variant(name, dtype)]
        part = run_experiment([corpus], split=split, encoders=variants, rerank=rerank).report.collections[0]
        rows = {system.name: system.evaluation.measures for system in part.systems}
        for name, _, folder in (peer.partition("=") for peer in peers):
            rows[f"dense:{name}"] = peer_row(corpus, Path(folder), split)
        columns[part.name] = rows
        click.echo(f"{path.name} done in {time.perf_counter() - started:.0f} s", err=True)
    write_results(results, {"split": split, "dtype": dtype, "measures": columns}, quick=quick)
    print_table({name: {row: m["nDCG@10"] for row, m in rows.items()} for name, rows in columns.items()})


def load_variant(name: str, dtype: Any) -> list[tuple[str, Encoder]]:
    """The encoder meant by NAME or NAME:POSTPROCESS, under a name that tells it apart."""
    checkpoint, _, postprocess = name.partition(":")
    postprocesses = [postprocess] if postprocess else []
    return encoder_variants(find_checkpoint(checkpoint), postprocesses=postprocesses, dtype=dtype)


def peer_row(corpus: Corpus, folder: Path, split: str) -> dict[str, float]:
    """Measures of a sentence-transformers model, whose vectors are kept for the next time."""
    return dense_row(corpus, split, CachedTeacher(SentenceTransformerTeacher(folder), TEACHERS).encode)


def dense_row(corpus: Corpus, split: str, encode: Callable[[list[str]], NDArray[Any]]) -> dict[str, float]:
    """Measures of exact dense search with any function from texts to unit vectors."""
    documents = list(corpus.documents())
    queries, qrels = judged(corpus, split)
    run = ranked_by_similarity(
        list(queries),
        encode(list(queries.values())).astype(np.float32),
        [document.doc_id for document in documents],
        encode([document.content for document in documents]).astype(np.float32),
        depth=DEPTH,
    )
    return evaluate(qrels, run, measures=DEFAULT_MEASURES).measures


def searched(corpus: Corpus, encoder: Encoder, modes: Sequence[Mode], *, split: str = "test") -> dict[str, float]:
    """nDCG@10 of an encoder's search modes, as `lmr evaluate` gives it, without the systems beside it and the costs."""
    queries, qrels = judged(corpus, split)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        # a weight that nobody asks for need not be calibrated
        build_index(corpus, encoder=encoder, output=index, dense_weight=None if "hybrid" in modes else 1.0)
        searcher = Searcher(index)
        runs = {mode: searcher.rank(list(queries.values()), k=DEPTH, mode=mode) for mode in modes}
    return {
        mode: evaluate(qrels, dict(zip(queries, run, strict=True)), measures=("nDCG@10",)).measures["nDCG@10"]
        for mode, run in runs.items()
    }


def judged(corpus: Corpus, split: str) -> tuple[dict[str, str], Qrels]:
    """The texts of the judged queries, and the judgments of documents that are there."""
    known = {document.doc_id for document in corpus.documents()}
    qrels = {
        query_id: {doc_id: grade for doc_id, grade in grades.items() if doc_id in known}
        for query_id, grades in corpus.qrels(split).items()
    }
    return {query.query_id: query.text for query in corpus.queries() if query.query_id in qrels}, qrels


def print_table(columns: dict[str, dict[str, float]], *, corner: str = "nDCG@10") -> None:
    """Markdown, the best of each column in bold."""
    folded = {name: by_seed(column) for name, column in columns.items()}
    best = {name: max(map(statistics.median, column.values())) for name, column in folded.items()}

    def cell(values: list[float], highest: float) -> str:
        return f"**{spread(values)}**" if statistics.median(values) == highest else spread(values)

    rows = [
        [row, *(cell(column[row], best[name]) for name, column in folded.items())]
        for row in next(iter(folded.values()))
    ]
    print_rows([corner, *columns], rows)


def by_seed(column: dict[str, float]) -> dict[str, list[float]]:
    """Scores of encoders that differ by their seed alone, together."""
    found: dict[str, list[float]] = {}
    for row, value in column.items():
        found.setdefault(re.sub(r"-seed-\d+", "", row), []).append(value)
    return found


if __name__ == "__main__":
    main()
