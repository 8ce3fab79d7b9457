"""What a row of a collection is: a chunk with its vector, text and words, under a key that says what it holds.

A document's rows follow from it alone, so that loading again sends only what is new, and a row that the index no longer
has is known by its key.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import ConfigError
from lm_retrieval.index.store import content_hash
from lm_retrieval.records import Document, Span

MAX_BYTES = 65_535  # of a VARCHAR
_TEXT_BYTES = 40_000  # of a row's text: its words need no more than a VARCHAR either
_TITLE_BYTES = 1_000  # of a title, which is in every row as a label; the first text has all of it
KEY_LENGTH = 128
DOCUMENT_LENGTH = 32
EMPTY = -1
"""The chunk of a document that has none: kept for its text, never found."""
_LAYOUT = b"1"


def document_key(doc_id: str) -> str:
    """A short name without odd characters: filters take it as it is."""
    return hashlib.sha256(doc_id.encode()).hexdigest()[:DOCUMENT_LENGTH]


def row_keys(document: Document, spans: list[Span], vectors: NDArray[np.float32]) -> list[str]:
    """The keys of a document's rows; they change when its text, chunks or vectors (C, D) do."""
    digest = hashlib.sha256(_LAYOUT + content_hash(document).encode())
    digest.update(np.asarray(spans, np.int64).tobytes())
    digest.update(np.ascontiguousarray(vectors, np.float32).tobytes())
    count = sum(1 for _ in _pieces(document.content, spans))
    head = f"{document_key(document.doc_id)}-{digest.hexdigest()[:16]}-{count}"
    return keys_of(head)


def head_of(key: str) -> str:
    """What the keys of all rows of a document begin with."""
    return key.rpartition("-")[0]


def keys_of(head: str) -> list[str]:
    """The keys of all rows of a document: the head says how many there are."""
    return [f"{head}-{place:06d}" for place in range(int(head.rpartition("-")[2]))]


def rows_of(
    document: Document, spans: list[Span], vectors: NDArray[np.float32], *, analyzer: Analyzer
) -> Iterator[dict[str, Any]]:
    """A row for each chunk, with its vector of (C, D).

    The texts of the rows cover the whole document. A text longer than a field holds goes on in further rows of the same
    vector, which changes no ranking.

    Raises:
        ConfigError: the id of the document is longer than a field holds.
    """
    if len(document.doc_id.encode()) > MAX_BYTES:
        raise ConfigError(f"document '{document.doc_id[:60]}…': an id in Milvus has at most {MAX_BYTES} bytes")
    content, digest = document.content, content_hash(document)
    keys = row_keys(document, spans, vectors)
    nowhere = np.zeros(vectors.shape[1], np.float32)
    for key, (chunk, part) in zip(keys, _pieces(content, spans), strict=True):
        text = content[part.start : part.end]
        start, end = spans[chunk] if chunk != EMPTY else (0, 0)
        yield {
            "pk": key,
            "document": document_key(document.doc_id),
            "doc_id": document.doc_id,
            "chunk_id": chunk,
            "start": start,
            "end": end,
            "offset": part.start,
            "title_length": len(document.title),
            "title": _cut(document.title, _TITLE_BYTES),
            "text": text,
            "words": _cut(words(text, analyzer), MAX_BYTES) if chunk != EMPTY else "",
            "content_hash": digest,
            "vector": vectors[chunk] if chunk != EMPTY else nowhere,
        }


def words(text: str, analyzer: Analyzer) -> str:
    """The terms of a text as the server's analyzer is to read them: it need know neither stems nor stop words."""
    return " ".join(analyzer.terms(text))


def join_document(rows: Iterable[dict[str, Any]]) -> tuple[Document, list[Span]]:
    """The document that all its rows, in any order, are of, and where its chunks are."""
    ordered = sorted(rows, key=lambda row: int(row["pk"].rpartition("-")[2]))
    content, spans = "", {}
    for row in ordered:
        content += str(row["text"])[len(content) - int(row["offset"]) :]
        if row["chunk_id"] != EMPTY:
            spans[int(row["chunk_id"])] = Span(int(row["start"]), int(row["end"]))
    first = ordered[0]
    length = int(first["title_length"])
    title, text = content[:length], content[length:]
    return Document(str(first["doc_id"]), title, text[1:] if title and text else text), list(spans.values())


def row_bytes(row: dict[str, Any]) -> int:
    """About what a row takes on the wire."""
    return int(row["vector"].nbytes) + sum(len(v.encode()) for v in row.values() if isinstance(v, str)) + 64


def _pieces(content: str, spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """Chunk and part of `content` of each row: the chunk, and what lies between it and the next."""
    if not spans:
        yield from ((EMPTY, part) for part in _parts(content, Span(0, len(content))))
        return
    for number, span in enumerate(spans):
        start = span.start if number else 0
        end = max(span.end, spans[number + 1].start) if number + 1 < len(spans) else len(content)
        yield from ((number, part) for part in _parts(content, Span(start, end)))


def _parts(content: str, span: Span) -> Iterator[Span]:
    """A span in parts that a field holds."""
    start = span.start
    while start < span.end or start == span.start:
        size = _TEXT_BYTES
        text = content[start : min(span.end, start + size)]
        while len(text.encode()) > _TEXT_BYTES:
            text = text[: len(text) // 2]
        yield Span(start, start + len(text))
        if not text:
            return
        start += len(text)


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode(errors="ignore")
