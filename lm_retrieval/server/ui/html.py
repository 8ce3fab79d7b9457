"""Pieces of the page as HTML, from templates that escape every text."""

from collections.abc import Sequence
from typing import Any

from lm_retrieval.records import Span
from lm_retrieval.reporting.html import environment


def render(template: str, **content: Any) -> str:
    """Fills a template of this package; texts are escaped."""
    return environment("lm_retrieval.server.ui").get_template(template).render(**content)


def marked(text: str, spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each is one of the spans; spans are in order and do not overlap."""
    pieces, place = [], 0
    for start, end in spans:
        pieces += [(text[place:start], False), (text[start:end], True)]
        place = end
    return [piece for piece in (*pieces, (text[place:], False)) if piece[0]]
