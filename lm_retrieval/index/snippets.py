"""Cutting a short passage out of a document and marking the words that match."""

from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.records import Span

SNIPPET_CHARACTERS = 240


def best_chunk(content: str, chunks: list[Span], *, terms: frozenset[str], analyzer: Analyzer) -> Span:
    """The chunk with the most distinct query terms; the first where none has any."""

    def distinct(span: Span) -> int:
        return len(terms.intersection(analyzer.terms(content[span.start : span.end])))

    return max(chunks, key=distinct, default=Span(0, min(len(content), SNIPPET_CHARACTERS)))


def cut_snippet(
    content: str, passage: Span, *, terms: frozenset[str], analyzer: Analyzer, width: int = SNIPPET_CHARACTERS
) -> tuple[str, tuple[Span, ...]]:
    """The part of `passage` with the most matching words, on one line, and where they are in it."""
    text = content[passage.start : passage.end]
    matches = analyzer.matches(text, terms)
    start = _best_start(text, matches, width)
    end = min(len(text), start + width)
    if end < len(text):
        shown = next((match.end for match in matches if match.start >= start), start)
        end = max(text.rfind(" ", start, end), start + width // 2, min(end, shown))
    piece = " ".join(text[start:end].split())
    snippet = ("… " if start > 0 else "") + piece + (" …" if end < len(text) else "")
    return snippet, tuple(analyzer.matches(snippet, terms))


def _best_start(text: str, matches: list[Span], width: int) -> int:
    """Where a window of `width` characters holds the most matches, moved back to the start of its sentence."""
    if not matches:
        return 0
    anchor = max(matches, key=lambda first: sum(first.start <= other.start < first.start + width for other in matches))
    sentence = max(
        text.rfind(mark, max(0, anchor.start - width // 2), anchor.start) for mark in (". ", "\n", "! ", "? ")
    )
    if sentence >= 0:
        return sentence + 1
    if anchor.start < width // 2:
        return 0
    latest = anchor.start - width // 4
    return text.rfind(" ", anchor.start - width // 2, latest) + 1 or latest
