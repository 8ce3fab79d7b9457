"""The BEIR folder layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from lm_retrieval.artifacts import atomic_file
from lm_retrieval.corpus.files import open_text
from lm_retrieval.corpus.tables import read_jsonl
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document, Judgment, Qrels, Query
from lm_retrieval.storage import Location

QRELS_HEADER = ("query-id", "corpus-id", "score")


def read_queries(folder: Location) -> list[Query]:
    """Reads `queries.jsonl`.

    Raises:
        CorpusError: missing file, broken JSON, missing fields or a query id used twice.
    """
    path = folder / "queries.jsonl"
    if not path.is_file():
        path = folder / "queries.jsonl.gz"
    if not path.is_file():
        raise CorpusError(f"{folder}: no queries.jsonl; only a corpus with queries and judgments can be evaluated")
    queries: dict[str, Query] = {}
    for row, place in read_jsonl(path):
        if "_id" not in row or "text" not in row:
            raise CorpusError(f"{place}: found {', '.join(row)}; needed: _id, text")
        if not isinstance(row["text"], str):
            raise CorpusError(f"{place}: text holds {type(row['text']).__name__}, a string is needed")
        query = Query(str(row["_id"]), row["text"])
        if query.query_id in queries:
            raise CorpusError(f"{place}: query id '{query.query_id}' was used before; ids must be unique")
        queries[query.query_id] = query
    return list(queries.values())


def list_splits(folder: Location) -> list[str]:
    """The names of the judgment files, sorted."""
    judgments = folder / "qrels"
    files = judgments.iterdir() if judgments.is_dir() else ()
    return sorted(path.stem for path in files if path.suffix == ".tsv")


def read_qrels(folder: Location, *, split: str) -> Qrels:
    """Reads `qrels/<split>.tsv`.

    Raises:
        CorpusError: missing file, wrong header, a broken line (named) or a pair judged twice.
    """
    path = folder / "qrels" / f"{split}.tsv"
    if not path.is_file():
        found = ", ".join(list_splits(folder)) or "none"
        raise CorpusError(f"{folder}: no judgments for split '{split}'; found: {found}")
    qrels: Qrels = {}
    with open_text(path, encoding="utf-8") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = tuple(next(reader, ()))
        if header != QRELS_HEADER:
            raise CorpusError(
                f"{path}, line 1: found {' '.join(header)!r}; needed the header {' '.join(QRELS_HEADER)!r}"
            )
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(QRELS_HEADER):
                raise CorpusError(f"{place}: {len(row)} columns, 3 are needed (query-id, corpus-id, score)")
            query_id, doc_id, grade = row
            try:
                relevance = int(grade)
            except ValueError as error:
                raise CorpusError(f"{place}: score '{grade}' is not a whole number") from error
            judged = qrels.setdefault(query_id, {})
            if doc_id in judged:
                raise CorpusError(f"{place}: query '{query_id}' and document '{doc_id}' are judged twice")
            judged[doc_id] = relevance
    return qrels


def write_documents(folder: Path, documents: Iterable[Document]) -> int:
    """Writes `corpus.jsonl` and returns how many documents it holds."""
    count = 0
    with atomic_file(folder / "corpus.jsonl") as stream:
        for document in documents:
            count += 1
            row = {"_id": document.doc_id, "title": document.title, "text": document.text}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def write_queries(folder: Path, queries: Iterable[Query]) -> None:
    """Writes `queries.jsonl`."""
    with atomic_file(folder / "queries.jsonl") as stream:
        for query in queries:
            stream.write(json.dumps({"_id": query.query_id, "text": query.text}, ensure_ascii=False) + "\n")


def write_qrels(folder: Path, judgments: Iterable[Judgment], *, split: str) -> None:
    """Writes `qrels/<split>.tsv`."""
    with atomic_file(folder / "qrels" / f"{split}.tsv") as stream:
        stream.write("\t".join(QRELS_HEADER) + "\n")
        for judgment in judgments:
            stream.write(f"{judgment.query_id}\t{judgment.doc_id}\t{judgment.relevance}\n")
