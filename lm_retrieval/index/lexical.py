"""BM25 over whole documents (Robertson et al., 1994).

What a term adds to the score of a document is computed when the index is built (the idea of bm25s, Lù, 2024,
arXiv:2407.03618) and stored as plain arrays beside a sorted list of terms. All of it is memory-mapped: a query touches
the postings of its own terms and nothing else.

Shapes: N documents, P postings, V terms.
"""

import json
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import IndexFormatError

K1 = 1.2
B = 0.75
_TERMS_NAME = "terms.arrow"
_ARRAYS = ("starts", "rows", "weights")
_SORTED_AT_ONCE = 1 << 22  # postings


class LexicalIndex:
    """BM25 scores of documents by row."""

    def __init__(
        self,
        terms: Sequence[str],
        starts: NDArray[np.int64],
        rows: NDArray[np.int32],
        weights: NDArray[np.float32],
        size: int,
    ) -> None:
        """Wraps postings; use `build` or `open`.

        Args:
            terms: V of them, sorted.
            starts: (V + 1,) where the postings of each term begin and end.
            rows: (P,) documents, each at most once among the postings of a term.
            weights: (P,) what the term adds to the score of that document.
            size: N.
        """
        self._terms, self._starts, self._rows, self._weights = terms, starts, rows, weights
        self._size = size
        self.analyzer = Analyzer()

    def __len__(self) -> int:
        return self._size

    @classmethod
    def build(cls, texts: Iterable[str]) -> "LexicalIndex":
        """Indexes texts in order; a text without terms keeps its row and is never found."""
        analyzer = Analyzer()
        vocabulary: dict[str, int] = {}
        # postings in document order: numbers in plain arrays, for memory to hold a million documents
        terms, counts, distinct, lengths = array("i"), array("i"), array("i"), array("i")
        for text in texts:
            found = Counter(vocabulary.setdefault(term, len(vocabulary)) for term in analyzer.terms(text))
            terms.extend(found.keys())
            counts.extend(found.values())
            distinct.append(len(found))
            lengths.append(found.total())
        names = sorted(vocabulary)
        order = np.empty(len(names), np.int32)
        order[[vocabulary[name] for name in names]] = np.arange(len(names), dtype=np.int32)
        return cls(names, *_weigh(order[_numbers(terms)], *map(_numbers, (counts, distinct, lengths))), len(distinct))

    def save(self, folder: Path) -> None:
        """Writes the index into `folder`."""
        import pyarrow
        import pyarrow.ipc

        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            table = pyarrow.table({"term": pyarrow.array(self._terms, pyarrow.large_string())})
            with pyarrow.ipc.new_file(str(folder / _TERMS_NAME), table.schema) as writer:
                # one batch: a term is looked up by its place
                writer.write_table(table, max_chunksize=max(1, len(table)))
            arrays: tuple[NDArray[Any], ...] = (self._starts, self._rows, self._weights)
            for name, array in zip(_ARRAYS, arrays, strict=True):
                np.save(folder / f"{name}.npy", array)
            (folder / "size.json").write_text(json.dumps({"documents": self._size, "k1": K1, "b": B}))

    @classmethod
    def open(cls, folder: Path) -> "LexicalIndex":
        """Opens a saved index without reading it into memory.

        Raises:
            IndexFormatError: missing or damaged.
        """
        try:
            size = int(json.loads((folder / "size.json").read_text())["documents"])
            terms = _MappedTerms(folder / _TERMS_NAME)
            starts, rows, weights = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
            fits = len(starts) == len(terms) + 1 and int(starts[-1]) == len(rows) == len(weights)
        except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError) as error:
            raise IndexFormatError(f"{folder}: damaged BM25 index ({error}); run `lmr embed` again") from error
        if not fits:
            raise IndexFormatError(f"{folder}: the parts of the BM25 index do not fit; run `lmr embed` again")
        return cls(terms, starts, rows, weights, size)

    def scores(self, query: str) -> NDArray[np.float32]:
        """(N,) BM25 scores; 0 where no term of the query occurs."""
        scores = np.zeros(self._size, np.float32)
        for term in self.analyzer.terms(query):
            place = bisect_left(self._terms, term)
            if place < len(self._terms) and self._terms[place] == term:
                postings = slice(self._starts[place], self._starts[place + 1])
                scores[self._rows[postings]] += self._weights[postings]
        return scores

    def search(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the best `k` documents that share a term with the query; ties in row order."""
        return top_rows(self.scores(query), k)


class _MappedTerms(Sequence[str]):
    """A sorted list of terms on disk: Arrow's own two buffers, since its scalars take microseconds each."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.ipc

        with pyarrow.memory_map(str(path)) as source:
            column = pyarrow.ipc.open_file(source).read_all().column(0).combine_chunks()
        self._size = len(column)
        _, starts, letters = column.buffers()
        self._starts = np.frombuffer(starts, np.int64) if self._size else np.zeros(1, np.int64)
        self._letters = memoryview(letters) if self._size else memoryview(b"")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: Any) -> Any:
        return str(self._letters[self._starts[place] : self._starts[place + 1]], "utf-8")


def _numbers(values: "array[int]") -> NDArray[np.int32]:
    return np.frombuffer(values, np.int32) if len(values) else np.zeros(0, np.int32)


def _weigh(
    terms: NDArray[np.int32], counts: NDArray[np.int32], distinct: NDArray[np.int32], lengths: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Postings in document order → the same by term, with BM25 weights as Lucene computes them.

    Args:
        terms: (P,) number of the term, documents in order.
        counts: (P,) how often it occurs there.
        distinct: (N,) postings of each document.
        lengths: (N,) terms of each document.
    """
    size = len(distinct)
    frequencies = np.bincount(terms)  # (V,) documents that have the term
    starts = np.concatenate(([0], np.cumsum(frequencies))).astype(np.int64)
    rarity = np.log(1 + (size - frequencies + 0.5) / (frequencies + 0.5))
    damping = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-9)) if size else np.zeros(0)
    documents = np.repeat(np.arange(size, dtype=np.int32), distinct)
    rows, weights = np.empty(len(terms), np.int32), np.empty(len(terms), np.float32)
    first = 0
    while first < len(frequencies):
        # some terms at a time, so that sorting takes little memory
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _SORTED_AT_ONCE, "right")) - 1)
        places = np.flatnonzero((terms >= first) & (terms < last))
        places = places[np.argsort(terms[places], kind="stable")]
        block = slice(starts[first], starts[last])
        rows[block] = documents[places]
        weights[block] = rarity[terms[places]] * counts[places] / (counts[places] + damping[rows[block]])
        first = last
    return starts, rows, weights


def top_rows(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the `k` largest positive scores, best first; ties in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    order = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return order.astype(np.int64), scores[order]
