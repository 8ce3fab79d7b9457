"""What the benchmarks share: taking turns, results files, Markdown."""

import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lm_retrieval.corpus import open_corpus

RESULTS = Path(__file__).parent / "results"

quick_option = click.option(
    "--quick", is_flag=True, help="Small and short: shows that it runs. Writes no results file."
)


def in_turns(ways: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round, after one round that warms up.

    One after the other in every round: whatever else the machine does strikes all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def texts_by_kind(path: Path) -> dict[str, list[str]]:
    """The documents of a corpus, and its short texts (titles, queries), each shuffled once and for all."""
    corpus = open_corpus(path)
    documents = [document.text for document in corpus.documents() if document.text]
    short = [document.title for document in corpus.documents() if document.title]
    short += [query.text for query in corpus.queries()]
    kinds = {"documents": documents, "short texts": short}
    for texts in kinds.values():
        random.Random(0).shuffle(texts)
    return kinds


def write_results(name: str, content: Any, *, quick: bool = False) -> None:
    """Writes benchmarks/results/NAME.json, unless it was a quick run."""
    if quick:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def stored_rows(name: str) -> list[dict[str, Any]]:
    """The rows that earlier runs left in benchmarks/results/NAME.json."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else []


def spread(values: Sequence[float]) -> str:
    """The median, and the range where there are several."""
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> None:
    """Prints a Markdown table; the first `left` columns are words, the others numbers."""
    for line in table_lines(headers, rows, left=left):
        print(line)


def table_lines(headers: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(headers) + " |"
    yield "|" + "---|" * left + "--:|" * (len(headers) - left)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
