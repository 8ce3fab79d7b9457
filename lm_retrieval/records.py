"""The field's words as plain values: documents, chunks, queries, judgments, hits."""

from typing import Any, NamedTuple

Run = dict[str, dict[str, float]]
"""query_id → doc_id → score, as in a TREC run file."""

Qrels = dict[str, dict[str, int]]
"""query_id → doc_id → relevance grade, as in a TREC qrels file."""


class Document(NamedTuple):
    """One retrievable unit of a corpus. `doc_id` is unique within the corpus."""

    doc_id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """Title and text as they are indexed; character offsets of chunks refer to this string."""
        return f"{self.title}\n{self.text}" if self.title and self.text else self.title or self.text


class Query(NamedTuple):
    """A question put to an index."""

    query_id: str
    text: str


class Judgment(NamedTuple):
    """One line of a qrels file: how relevant a document is to a query (0 = judged, not relevant)."""

    query_id: str
    doc_id: str
    relevance: int


class Span(NamedTuple):
    """A half-open range of characters, `start` included and `end` not."""

    start: int
    end: int


class Hit(NamedTuple):
    """One ranked answer.

    `passage` locates the best chunk in `Document.content`; `highlights` are ranges within `snippet`
    that match words of the query.
    """

    rank: int
    doc_id: str
    score: float
    title: str
    snippet: str
    passage: Span
    highlights: tuple[Span, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "rank": self.rank,
            "score": self.score,
            "id": self.doc_id,
            "title": self.title,
            "snippet": self.snippet,
            "highlights": [list(span) for span in self.highlights],
            "passage": {"start": self.passage.start, "end": self.passage.end},
        }
