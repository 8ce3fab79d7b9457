"""Cutting texts into overlapping chunks of at most so many tokens, at sentence ends where possible.

Nothing is dropped: every character with a token is in some chunk, and offsets point into the original text.
"""

from collections.abc import Iterator
from typing import NamedTuple

from lm_retrieval.tokenizer import Tokenizer, Unit

_SENTENCE_ENDS = frozenset(".!?…。！？")
_CLOSERS = "\"'”’)]»"
_MAX_TOKENS_PER_CHARACTER = 4  # a character outside the vocabulary becomes its UTF-8 bytes


class Chunk(NamedTuple):
    """Characters `start:end` of a text and their token ids: `tokenizer.encode(text[start:end])`."""

    start: int
    end: int
    token_ids: list[int]


def chunk_text(text: str, *, tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int = 0) -> Iterator[Chunk]:
    """Yields chunks in order; a blank text has none.

    Args:
        text: the text to cut.
        tokenizer: counts the tokens.
        max_tokens: most tokens of a chunk.
        overlap_tokens: neighbouring chunks share up to this many tokens; at most half of max_tokens.
    """
    token_ids = tokenizer.encode(text)
    if len(token_ids) <= max_tokens:
        if text.strip():
            yield Chunk(0, len(text), token_ids)
        return
    units = list(_small_units(text, tokenizer, max_tokens))
    first = 0
    while first < len(units):
        end = _fill(units, first, max_tokens)
        if end < len(units):
            end = _last_sentence_end(text, units, first + (end - first + 1) // 2, end)
        chunk = _cut(text, units, first, end, tokenizer)
        while len(chunk.token_ids) > max_tokens and end - first > 1:
            # the first word may take another token at the start of a chunk than in the middle of a text
            end -= 1
            chunk = _cut(text, units, first, end, tokenizer)
        if text[chunk.start : chunk.end].strip():
            yield chunk
        if end >= len(units):
            return
        first = max(first + 1, _step_back(text, units, first, end, overlap_tokens))


def _small_units(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[Unit]:
    """Words, with those too long for half a chunk cut by characters."""
    limit = max(1, max_tokens // (2 * _MAX_TOKENS_PER_CHARACTER))
    for unit in tokenizer.units(text):
        if len(unit.token_ids) * 2 <= max_tokens:
            yield unit
            continue
        for start in range(unit.start, unit.end, limit):
            end = min(unit.end, start + limit)
            yield Unit(start, end, tuple(tokenizer.encode(text[start:end])))


def _fill(units: list[Unit], first: int, max_tokens: int) -> int:
    """The end of the longest run of units from `first` that fits, at least one."""
    count = 0
    for place in range(first, len(units)):
        count += len(units[place].token_ids)
        if count > max_tokens and place > first:
            return place
    return len(units)


def _ends_sentence(text: str, units: list[Unit], place: int) -> bool:
    word = text[units[place].start : units[place].end]
    if word.endswith("\n"):
        return True
    word = word.rstrip(_CLOSERS)
    if word[-1:] in _SENTENCE_ENDS:
        return True
    return place + 1 < len(units) and "\n\n" in text[units[place].end : units[place + 1].start]


def _last_sentence_end(text: str, units: list[Unit], lowest: int, end: int) -> int:
    """The last place in (lowest, end] after a sentence end; `end` where there is none."""
    return next((place for place in range(end, lowest, -1) if _ends_sentence(text, units, place - 1)), end)


def _step_back(text: str, units: list[Unit], first: int, end: int, overlap_tokens: int) -> int:
    """Where the next chunk begins: up to `overlap_tokens` before `end`, at a sentence start where possible."""
    place, count = end, 0
    while place > first + 1 and count + len(units[place - 1].token_ids) <= overlap_tokens:
        place -= 1
        count += len(units[place].token_ids)
    return next((start for start in range(place, end) if _ends_sentence(text, units, start - 1)), place)


def _cut(text: str, units: list[Unit], first: int, end: int, tokenizer: Tokenizer) -> Chunk:
    start, stop = units[first].start, units[end - 1].end
    while start < stop and text[start].isspace():
        start += 1
    return Chunk(start, stop, tokenizer.encode(text[start:stop]))
