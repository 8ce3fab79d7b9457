"""Words for lexical matching: lower case, English stop list, Snowball stems. BM25, LSI and highlights share it."""

import re

import Stemmer

from lm_retrieval.records import Span

_WORD = re.compile(r"(?u)\b\w\w+\b")
_MAX_CACHED_WORDS = 500_000

STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being below between both
    but by can could did do does doing down during each few for from further had has have having he her here hers him
    his how i if in into is it its itself just me more most my no nor not now of off on once only or other our out over
    own same she should so some such than that the their them then there these they this those through to too under
    until up us very was we were what when where which while who whom why will with would you your
    """.split()  # noqa: SIM905 - a list of 120 quoted words is harder to read
)


class Analyzer:
    """Turns text into index terms; remembers the stem of each word."""

    def __init__(self) -> None:
        self._stem = Stemmer.Stemmer("english").stemWord
        self._cache: dict[str, str | None] = {}

    def terms(self, text: str) -> list[str]:
        """The text's terms in order, stop words left out."""
        return [term for word in _WORD.findall(text.lower()) if (term := self._term(word)) is not None]

    def matches(self, text: str, terms: frozenset[str]) -> list[Span]:
        """Where words with one of these terms stand in `text`."""
        return [Span(*match.span()) for match in _WORD.finditer(text) if self._term(match[0].lower()) in terms]

    def _term(self, word: str) -> str | None:
        try:
            return self._cache[word]
        except KeyError:
            if len(self._cache) >= _MAX_CACHED_WORDS:
                self._cache.clear()
            term = None if word in STOP_WORDS else str(self._stem(word))
            self._cache[word] = term
            return term
