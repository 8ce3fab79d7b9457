"""Turning postings round: they are found document by document and searched term by term.

An external sort: what was found lies in files when there is a folder for them, is dealt out to ranges of terms, and
each range is sorted by itself. Memory holds one range, the vocabulary, and eight bytes for each document.

Shapes: N documents, P postings, V terms.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int32]
BYTES_PER_POSTING = 64
"""What sorting takes, about."""


class Postings:
    """Postings of documents in their order.

    Attributes:
        vocabulary: number of each term, in the order of their first use.
    """

    def __init__(self, *, folder: Path | None, most: int) -> None:
        """Begins with no document.

        Args:
            folder: for temporary files; None keeps everything in memory.
            most: postings held, or sorted, at once.
        """
        self.vocabulary: dict[str, int] = {}
        self._folder, self._most = folder, most
        self._distinct, self._lengths = array("i"), array("i")
        self._terms, self._counts = array("i"), array("i")
        self._found = _Pile(folder, "found")

    def add(self, terms: Iterable[str]) -> None:
        """Adds the next document."""
        vocabulary = self.vocabulary
        found = Counter(vocabulary.setdefault(term, len(vocabulary)) for term in terms)
        self._terms.extend(found.keys())
        self._counts.extend(found.values())
        self._distinct.append(len(found))
        self._lengths.append(found.total())
        if len(self._terms) >= self._most:
            self._put_down()

    @property
    def lengths(self) -> Numbers:
        """(N,) terms of each document, repeated ones too."""
        return _numbers(self._lengths)

    def by_term(self, order: Numbers) -> tuple[NDArray[np.int64], Iterator[tuple[Numbers, Numbers, Numbers]]]:
        """Postings sorted by term, documents of a term in their order.

        Args:
            order: (V,) the place of each term of the vocabulary among the sorted terms.

        Returns:
            (V + 1,) where the postings of each term begin and end, and a stream of (terms, rows, counts) that
            together are all P postings.
        """
        self._put_down()
        frequencies = np.zeros(len(order), np.int64)
        for piece in self._found.pieces():
            frequencies += np.bincount(order[piece[:, 0]], minlength=len(order))
        starts = np.concatenate(([0], np.cumsum(frequencies)))
        return starts, self._sorted(order, starts)

    def _put_down(self) -> None:
        if len(self._terms):
            self._found.append(np.column_stack((_numbers(self._terms), _numbers(self._counts))))
            self._terms, self._counts = array("i"), array("i")

    def _sorted(self, order: Numbers, starts: NDArray[np.int64]) -> Iterator[tuple[Numbers, Numbers, Numbers]]:
        bounds = [0]
        while bounds[-1] < len(order):
            reach = int(np.searchsorted(starts, starts[bounds[-1]] + self._most, "right")) - 1
            bounds.append(max(bounds[-1] + 1, reach))
        for pile in self._dealt(order, np.asarray(bounds[1:])):
            postings = pile.whole()
            postings = postings[np.argsort(postings[:, 0], kind="stable")]
            yield postings[:, 0], postings[:, 2], postings[:, 1]

    def _dealt(self, order: Numbers, ends: NDArray[np.int64]) -> "list[_Pile]":
        """(P, 3) term, count and row, in a pile for each range of terms."""
        piles = [_Pile(self._folder, f"range-{number}", columns=3) for number in range(len(ends))]
        distinct = _numbers(self._distinct)
        ends_of_documents = np.cumsum(distinct, dtype=np.int64)
        first = 0
        for piece in self._found.pieces():
            places = np.arange(first, first + len(piece))
            rows = np.searchsorted(ends_of_documents, places, "right").astype(np.int32)
            first += len(piece)
            terms = order[piece[:, 0]]
            numbers = np.searchsorted(ends, terms, "right")
            dealt = np.argsort(numbers, kind="stable")
            postings = np.column_stack((terms, piece[:, 1], rows))[dealt]
            for number, part in enumerate(
                np.split(postings, np.cumsum(np.bincount(numbers, minlength=len(ends)))[:-1])
            ):
                if len(part):
                    piles[number].append(part)
        return piles


class _Pile:
    """Rows of int32 that are put down one piece after the other, in a file where there is a folder."""

    def __init__(self, folder: Path | None, name: str, *, columns: int = 2) -> None:
        self._path = None if folder is None else folder / name
        self._columns = columns
        self._sizes: list[int] = []
        self._held: list[Numbers] = []

    def append(self, rows: Numbers) -> None:
        if self._path is None:
            self._held.append(rows)
            return
        self._sizes.append(rows.size)
        with self._path.open("ab") as stream:
            stream.write(np.ascontiguousarray(rows, np.int32).data)

    def pieces(self) -> Iterator[Numbers]:
        yield from self._held
        if self._path is not None and self._sizes:
            with self._path.open("rb") as stream:
                for size in self._sizes:
                    yield np.fromfile(stream, np.int32, size).reshape(-1, self._columns)

    def whole(self) -> Numbers:
        return np.concatenate([np.zeros((0, self._columns), np.int32), *self.pieces()])


def _numbers(values: "array[int]") -> Numbers:
    return np.frombuffer(values, np.int32).copy() if len(values) else np.zeros(0, np.int32)
