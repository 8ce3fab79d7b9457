"""Questions for a corpus that has none: each document's title, or first line, held out of it and asked for.

Known-item search (Azzopardi, de Rijke and Balog, 2007, SIGIR): one right answer per question. It measures whether a
system finds a document again by what its author called it; not whether it finds everything on a topic, and not how it
does on the words that other people would use.
"""

import random
from collections import Counter
from pathlib import Path

from lm_retrieval.corpus.beir import write_documents, write_qrels, write_queries
from lm_retrieval.corpus.reader import Corpus
from lm_retrieval.errors import CorpusError
from lm_retrieval.records import Document, Judgment, Query

SPLIT = "known-item"
NOTE = (
    "known-item queries: titles (or first lines) held out of their own documents. They show how well a document is "
    "found by its author's words for it, with one right answer each. They do not show how well the questions of other "
    "people are answered, nor whether everything on a topic is found."
)
MIN_QUERIES = 10
_MOST_QUERIES = 500
_MIN_WORDS = 2
_MAX_WORDS = 40
_MIN_REST_WORDS = 8


def write_known_item(corpus: Corpus, folder: Path, *, most: int = _MOST_QUERIES, seed: int = 0) -> int:
    """Writes a BEIR folder with held-out titles as queries; returns how many there are.

    Where documents have no titles, their first lines take the place. Titles that several documents have are not
    asked for. All titles are held out, also those that are not asked.

    Raises:
        CorpusError: fewer than ten documents have something that can be asked for.
    """
    documents, titles = [], {}
    times: Counter[str] = Counter()
    for document in corpus.documents():
        title, rest = _divided(document)
        documents.append(Document(document.doc_id, "", rest))
        times[title.lower()] += 1
        if _askable(title, rest):
            titles[document.doc_id] = title
    asked = [doc_id for doc_id, title in titles.items() if times[title.lower()] == 1]
    if len(asked) < MIN_QUERIES:
        raise CorpusError(
            f"{corpus.path}: only {len(asked)} documents with a title or first line of their own and text after it; "
            f"known-item evaluation needs at least {MIN_QUERIES}"
        )
    chosen = sorted(random.Random(seed).sample(asked, min(most, len(asked))))
    write_documents(folder, documents)
    write_queries(folder, (Query(f"title:{doc_id}", titles[doc_id]) for doc_id in chosen))
    write_qrels(folder, (Judgment(f"title:{doc_id}", doc_id, 1) for doc_id in chosen), split=SPLIT)
    return len(chosen)


def _divided(document: Document) -> tuple[str, str]:
    """Title and text; without a title the first line and the rest, where the line can be asked for."""
    title, rest = " ".join(document.title.split()), document.text.strip()
    if not title:
        first, _, after = rest.partition("\n")
        first = " ".join(first.split()).lstrip("# ")
        if _askable(first, after) and len(first.split()) <= _MAX_WORDS:
            return first, after.strip()
    return title, rest


def _askable(title: str, rest: str) -> bool:
    return len(title.split()) >= _MIN_WORDS and len(rest.split()) >= _MIN_REST_WORDS
