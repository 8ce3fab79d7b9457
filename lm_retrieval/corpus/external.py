"""Importing known test collections through ir_datasets (extra `datasets`)."""

from pathlib import Path
from typing import Any

from lm_retrieval.corpus.beir import write_documents, write_qrels, write_queries
from lm_retrieval.errors import CorpusError, MissingExtraError
from lm_retrieval.records import Document, Judgment, Query

PREFIX = "ir_datasets:"


def import_collection(source: str, folder: Path) -> int:
    """Writes a collection in BEIR layout and returns the number of documents; judgments become the split `test`.

    Raises:
        MissingExtraError: ir_datasets is not installed.
        CorpusError: an unknown collection, or it cannot be fetched.
    """
    if not source.startswith(PREFIX):
        raise CorpusError(f"'{source}' is unknown; write {PREFIX}NAME, for example {PREFIX}cranfield")
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtraError("importing collections", extra="datasets") from error
    name = source.removeprefix(PREFIX)
    try:
        dataset: Any = ir_datasets.load(name)
    except KeyError as error:
        raise CorpusError(f"ir_datasets knows no collection '{name}'; see its catalogue for the names") from error
    try:
        count = write_documents(folder, map(_document, dataset.docs_iter()))
        if dataset.has_queries():
            write_queries(folder, (Query(query.query_id, query.default_text()) for query in dataset.queries_iter()))
        if dataset.has_qrels():
            judgments = (Judgment(qrel.query_id, qrel.doc_id, qrel.relevance) for qrel in dataset.qrels_iter())
            write_qrels(folder, judgments, split="test")
    except (OSError, RuntimeError) as error:
        raise CorpusError(
            f"'{name}' cannot be fetched ({error}); check the network, or copy the files by hand"
        ) from error
    return count


def _document(record: Any) -> Document:
    title = str(getattr(record, "title", "") or "")
    body = getattr(record, "text", None) or getattr(record, "abstract", None) or record.default_text()
    return Document(record.doc_id, title, str(body))
