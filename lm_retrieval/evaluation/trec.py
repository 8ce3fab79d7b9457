"""TREC run and qrels files.

A run line is `query_id Q0 doc_id rank score tag`; trec_eval ignores the rank, compares scores in float32 and breaks
ties by document id, descending. Runs are therefore written with scores that strictly decrease in float32.
"""

import gzip
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from lm_retrieval.artifacts import atomic_file
from lm_retrieval.corpus.beir import QRELS_HEADER
from lm_retrieval.corpus.files import open_text
from lm_retrieval.errors import EvaluationError
from lm_retrieval.records import Qrels, Run


def write_run(path: Path, run: Mapping[str, Mapping[str, float]], *, tag: str) -> None:
    """Writes a run, compressed where the name ends in `.gz`; documents keep their order, which is that of their scores.

    Raises:
        EvaluationError: an id contains white space, which the format cannot hold.
        StorageError: the file system refused.
    """
    with _writing(path) as stream:
        for query_id, scores in run.items():
            previous = math.inf
            for rank, (doc_id, score) in enumerate(scores.items(), start=1):
                if len(f"{query_id} {doc_id}".split()) != 2:
                    raise EvaluationError(f"'{query_id}' / '{doc_id}': TREC files cannot hold ids with white space")
                previous = _below(score, previous)
                stream.write(f"{query_id} Q0 {doc_id} {rank} {previous:.9g} {tag}\n")


def read_run(path: Path) -> Run:
    """Reads a run file (also `.gz`).

    Raises:
        EvaluationError: a line without six columns, a score that is no finite number, or a document twice in a query;
            the line is named.
    """
    run: Run = {}
    with open_text(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if not fields:
                continue
            place = f"{path}, line {number}"
            if len(fields) != 6:
                raise EvaluationError(
                    f"{place}: {len(fields)} columns, 6 are needed (query Q0 document rank score tag)"
                )
            query_id, _, doc_id, _, raw, _ = fields
            try:
                score = float(raw)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise EvaluationError(f"{place}: score '{raw}' is not a finite number")
            scores = run.setdefault(query_id, {})
            if doc_id in scores:
                raise EvaluationError(f"{place}: document '{doc_id}' stands twice in query '{query_id}'")
            scores[doc_id] = score
    return run


def read_qrels_file(path: Path) -> Qrels:
    """Reads judgments: TREC's `query_id iteration doc_id grade`, or BEIR's table with its header (also `.gz`).

    Raises:
        EvaluationError: a line with another number of columns, a grade that is no whole number, or a pair judged twice;
            the line is named.
    """
    qrels: Qrels = {}
    columns = 4
    with open_text(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if number == 1 and tuple(fields) == QRELS_HEADER:
                columns = 3
                continue
            if not fields:
                continue
            place = f"{path}, line {number}"
            if len(fields) != columns:
                form = "query iteration document grade" if columns == 4 else " ".join(QRELS_HEADER)
                raise EvaluationError(f"{place}: {len(fields)} columns, {columns} are needed ({form})")
            query_id, doc_id, raw = fields[0], fields[-2], fields[-1]
            try:
                grade = int(raw)
            except ValueError as error:
                raise EvaluationError(f"{place}: grade '{raw}' is not a whole number") from error
            judged = qrels.setdefault(query_id, {})
            if doc_id in judged:
                raise EvaluationError(f"{place}: query '{query_id}' and document '{doc_id}' are judged twice")
            judged[doc_id] = grade
    if not qrels:
        raise EvaluationError(f"{path}: no judgments")
    return qrels


@contextmanager
def _writing(path: Path) -> Iterator[IO[str]]:
    if path.suffix != ".gz":
        with atomic_file(path) as stream:
            yield stream
        return
    with atomic_file(path, "wb") as binary:
        # neither name nor time: the same run is the same file
        with gzip.GzipFile(filename="", fileobj=binary, mode="wb", mtime=0) as packed:
            with io.TextIOWrapper(packed, encoding="utf-8", newline="") as stream:
                yield stream


def _below(score: float, previous: float) -> float:
    """`score`, or the next smaller float32 where it would not be below `previous`."""
    with np.errstate(over="ignore"):  # beyond float32 it becomes the largest one that is left
        value = np.float32(score)
    limit = np.float32(previous)
    return float(value if value < limit else np.nextafter(limit, np.float32(-np.inf)))
