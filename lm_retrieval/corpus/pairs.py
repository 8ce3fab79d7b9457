"""Pairs of texts that belong together: read from files and judgments, or made from a corpus without any labels."""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lm_retrieval.corpus import tables
from lm_retrieval.corpus.files import suffix_of
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document, Qrels, Query
from lm_retrieval.storage import Location, children

PAIR_SUFFIXES = frozenset((".jsonl", ".parquet"))
_HEADING = re.compile(r"^(?:#{1,6}[ \t]+(?P<atx>\S.*?)[ \t#]*|(?P<setext>\S[^\n]*)\n(?:={3,}|-{3,}|~{3,}))$", re.M)
_SPAN_WORDS = (4, 16)
_MIN_WORDS = 24  # a shorter text has no span worth asking for and no rest worth finding
_WORD = re.compile(r"\S+")


class Pair(NamedTuple):
    """A query and a text that answers it."""

    query: str
    positive: str
    document: str
    """What `positive` was taken from: pairs of one document are never each other's negatives."""
    source: str
    """Pairs of one source share a batch, so that topic or style alone does not give the answer away."""
    negatives: tuple[str, ...] = ()
    """Texts known not to answer the query."""


def held_out(doc_id: str) -> bool:
    """Whether a document is among the tenth that no encoder is ever tuned on: what is measured on it is not learned."""
    return hashlib.blake2b(doc_id.encode(errors="replace"), digest_size=2, person=b"held out").digest()[0] % 10 == 0


def corpus_pairs(documents: Iterable[Document], *, seed: int = 0, spans_per_document: int = 3) -> Iterator[Pair]:
    """Pairs from unlabelled text: title → text, heading → section, random span → the rest of its document.

    The span is what a person might remember of a document; taking it out of the other side keeps the task from being
    solved by finding the same words (the inverse cloze task, Lee et al., 2019, arXiv:1906.00300).
    """
    for document in documents:
        generator = random.Random(f"{seed}:{document.doc_id}")
        title, text = document.title.strip(), document.text.strip()
        if title and text:
            yield Pair(title, text, document.doc_id, "titles")
        for heading, section in _sections(text):
            yield Pair(heading, section, document.doc_id, "titles")
        for first, last in _spans(text, spans_per_document, generator):
            rest = f"{title}\n{text[:first]} {text[last:]}".strip()
            yield Pair(text[first:last], rest, document.doc_id, "spans")


def span_pairs(pairs: Iterable[Pair], *, seed: int = 0, spans_per_positive: int = 1) -> Iterator[Pair]:
    """Random spans of the positives as further queries: in each batch they ask for the texts they were taken from."""
    for document, pair in {pair.document: pair for pair in pairs}.items():
        generator = random.Random(f"{seed}:{document}")
        for first, last in _spans(pair.positive, spans_per_positive, generator):
            yield Pair(pair.positive[first:last], pair.positive, document, f"{pair.source} spans")


def judged_pairs(documents: Mapping[str, Document], queries: Iterable[Query], qrels: Qrels) -> Iterator[Pair]:
    """A pair for each relevant document of each judged query.

    Raises:
        CorpusError: a judgment names a query or document that is not there.
    """
    texts = {query.query_id: query.text for query in queries}
    for query_id, grades in qrels.items():
        if query_id not in texts:
            raise CorpusError(f"labels: query '{query_id}' is judged but has no text in queries.jsonl")
        for doc_id, grade in grades.items():
            if doc_id not in documents:
                raise CorpusError(f"labels: query '{query_id}' points to document '{doc_id}', which the corpus has not")
            if grade > 0 and documents[doc_id].content.strip():
                yield Pair(texts[query_id], documents[doc_id].content, doc_id, "labels")


def read_pairs(path: Location, *, documents: Mapping[str, Document] | None = None) -> Iterator[Pair]:
    """Reads pairs from a Parquet or JSONL file, or from every such file of a folder.

    Columns: `query` and `positive` (texts), optionally `negatives` (a text or a list of texts); or, for the documents
    of a corpus, `positive_id` and optionally `negative_ids`.

    Raises:
        CorpusError: no such file, missing columns, or an id that the corpus has not.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in children(path) if suffix_of(file) in PAIR_SUFFIXES]
    if not path.exists() or not files:
        raise CorpusError(f"{path}: no pairs here; a .jsonl or .parquet file with columns query and positive is needed")
    for file in files:
        source = file.name.split(".")[0]
        for row, place in tables.read_rows(file):
            yield _pair(row, place, source, documents or {})


def holds_pairs(path: Location) -> bool:
    """Whether a file, or the first table of a folder, has the columns of pairs rather than of documents."""
    files = [path] if path.is_file() else children(path) if path.is_dir() else []
    first = next((file for file in files if suffix_of(file) in PAIR_SUFFIXES), None)
    if first is None or first.name.startswith("corpus.jsonl"):
        return False
    row = next((row for row, _ in tables.read_rows(first)), {})
    return "query" in row and bool({"positive", "positive_id"} & set(row))


def _spans(text: str, count: int, generator: random.Random) -> Iterator[tuple[int, int]]:
    """First and last character of random runs of words; few of a short text."""
    words = list(_WORD.finditer(text))
    if len(words) < _MIN_WORDS:
        return
    for _ in range(min(count, len(words) // _MIN_WORDS + 1)):
        size = generator.randint(*_SPAN_WORDS)
        start = generator.randrange(len(words) - size)
        yield words[start].start(), words[start + size - 1].end()


def _sections(text: str) -> Iterator[tuple[str, str]]:
    headings = list(_HEADING.finditer(text))
    for place, heading in enumerate(headings):
        end = headings[place + 1].start() if place + 1 < len(headings) else len(text)
        section = text[heading.end() : end].strip()
        if len(section.split()) >= _SPAN_WORDS[0]:
            yield (heading["atx"] or heading["setext"]).strip(), section


def _pair(row: Mapping[str, Any], place: str, source: str, documents: Mapping[str, Document]) -> Pair:
    query, positive, negatives = row.get("query"), row.get("positive"), _list(row.get("negatives"))
    doc_id = row.get("positive_id")
    if doc_id is not None:
        positive = _content(str(doc_id), place, documents)
        negatives = [_content(str(other), place, documents) for other in _list(row.get("negative_ids"))]
    if not all(isinstance(text, str) for text in (query, positive, *negatives)):
        raise CorpusError(f"{place}: columns query and positive (texts) are needed; found: {', '.join(row)}")
    query, positive = tables.whole(str(query)), tables.whole(str(positive))
    document = positive if doc_id is None else str(doc_id)
    return Pair(query, positive, document, source, tuple(map(tables.whole, negatives)))


def _list(value: Any) -> list[Any]:
    """A column that may hold nothing, one value or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _content(doc_id: str, place: str, documents: Mapping[str, Document]) -> str:
    if doc_id not in documents:
        raise CorpusError(f"{place}: document '{doc_id}' is not in the corpus")
    return documents[doc_id].content
