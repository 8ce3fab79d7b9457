"""Cutting texts into overlapping chunks of at most so many tokens, at sentence ends where possible.

Nothing is dropped: every character with a token is in some chunk, and offsets point into the original text.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lm_retrieval.tokenizer import Tokenizer

_WORD = re.compile(r"\s*\S{1,512}")
_SENTENCE_ENDS = frozenset(".!?…。！？")
_CLOSERS = "\"'”’)]»"
_MAX_TOKENS_PER_CHARACTER = 4  # a character outside the vocabulary becomes its UTF-8 bytes


class Chunk(NamedTuple):
    """Characters `start:end` of a text and their token ids: `tokenizer.encode(text[start:end])`."""

    start: int
    end: int
    token_ids: list[int]


class _Word(NamedTuple):
    """Characters `start:end`, white space before the word included, and how many tokens they take."""

    start: int
    end: int
    tokens: int


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
    words = list(_words(text, tokenizer, max_tokens))
    first = covered = 0  # words before `covered` are in some chunk
    while first < len(words):
        end = _fill(words, first, max_tokens)
        if end < len(words):
            end = _last_sentence_end(text, words, max(first + (end - first + 1) // 2, covered), end)
        chunk = _cut(text, words, first, end, tokenizer)
        while len(chunk.token_ids) > max_tokens and end - first > 1:
            # normalisation may join what was counted apart
            end -= 1
            chunk = _cut(text, words, first, end, tokenizer)
        if end <= covered:  # the overlap leaves no room for anything new
            first = covered
            continue
        yield chunk
        if end >= len(words):
            return
        covered = end
        first = max(first + 1, _step_back(text, words, first, end, overlap_tokens))


def _words(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[_Word]:
    """Words with their token counts; those too long for half a chunk are cut by characters."""
    limit = max(1, max_tokens // (2 * _MAX_TOKENS_PER_CHARACTER))
    for match in _WORD.finditer(text):
        word = match[0]
        # the tokenizer puts a space before what it encodes: one that stands in the text is not counted twice
        count = len(tokenizer.encode(word[1:] if word[0] == " " else word))
        if count * 2 <= max_tokens:
            yield _Word(match.start(), match.end(), count)
            continue
        first = match.end() - len(word.lstrip())
        for start in range(first, match.end(), limit):
            yield from _pieces(text, start, min(match.end(), start + limit), tokenizer, max_tokens)


def _pieces(text: str, start: int, end: int, tokenizer: Tokenizer, max_tokens: int) -> Iterator[_Word]:
    """Characters `start:end` in pieces that fit; one character may fold into many (`ﷺ` into 18)."""
    count = len(tokenizer.encode(text[start:end]))
    if count <= max_tokens or end - start == 1:
        yield _Word(start, end, count)
        return
    middle = (start + end) // 2
    yield from _pieces(text, start, middle, tokenizer, max_tokens)
    yield from _pieces(text, middle, end, tokenizer, max_tokens)


def _fill(words: list[_Word], first: int, max_tokens: int) -> int:
    """The end of the longest run of words from `first` that fits, at least one."""
    count = 0
    for place in range(first, len(words)):
        count += words[place].tokens
        if count > max_tokens and place > first:
            return place
    return len(words)


def _ends_sentence(text: str, words: list[_Word], place: int) -> bool:
    if text[words[place].start : words[place].end].rstrip(_CLOSERS)[-1:] in _SENTENCE_ENDS:
        return True
    return _line_ends_after(text, words, place) > 1


def _line_ends_after(text: str, words: list[_Word], place: int) -> int:
    return text[words[place + 1].start : words[place + 1].end].count("\n") if place + 1 < len(words) else 0


def _last_sentence_end(text: str, words: list[_Word], lowest: int, end: int) -> int:
    """The last place in (lowest, end] after a sentence end, else after a line end, else `end`."""
    places = range(end, lowest, -1)
    line_end = next((place for place in places if _line_ends_after(text, words, place - 1)), end)
    return next((place for place in places if _ends_sentence(text, words, place - 1)), line_end)


def _step_back(text: str, words: list[_Word], first: int, end: int, overlap_tokens: int) -> int:
    """Where the next chunk begins: up to `overlap_tokens` before `end`, at a sentence start where possible."""
    place, count = end, 0
    while place > first + 1 and count + words[place - 1].tokens <= overlap_tokens:
        place -= 1
        count += words[place].tokens
    return next((start for start in range(place, end) if _ends_sentence(text, words, start - 1)), place)


def _cut(text: str, words: list[_Word], first: int, end: int, tokenizer: Tokenizer) -> Chunk:
    start, stop = words[first].start, words[end - 1].end
    while start < stop and text[start].isspace():
        start += 1
    return Chunk(start, stop, tokenizer.encode(text[start:stop]))
