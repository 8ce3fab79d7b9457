"""Pieces of the page as HTML, from templates that escape every text."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from lm_retrieval.records import Span


def render(template: str, **content: Any) -> str:
    """Fills a template of this package; texts are escaped."""
    return str(_environment().get_template(template).render(**content))


def marked(text: str, spans: Sequence[Span]) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each is one of the spans; spans are in order and do not overlap."""
    pieces, place = [], 0
    for start, end in spans:
        pieces += [(text[place:start], False), (text[start:end], True)]
        place = end
    return [piece for piece in (*pieces, (text[place:], False)) if piece[0]]


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("lm_retrieval.server.ui"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
