"""BM25 over whole documents (Robertson et al., 1994).

What a term adds to the score of a document is computed when the index is built (the idea of bm25s, Lù, 2024,
arXiv:2407.03618) and stored as plain arrays beside a sorted list of terms. All of it is memory-mapped: a query touches
the postings of its own terms and nothing else.

Shapes: N documents, P postings, V terms.
"""

import json
import math
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import IndexFormatError
from lm_retrieval.index.arrays import array_writer
from lm_retrieval.index.postings import BYTES_PER_POSTING, Postings

K1 = 1.2
B = 0.75
_TERMS_NAME = "terms.arrow"
_ARRAYS = ("starts", "rows", "weights")
_SORTED_AT_ONCE = 1 << 20  # postings; fewer are not worth a file
_MOST_AT_ONCE = 1 << 22  # more make nothing faster


class LexicalIndex:
    """BM25 scores of documents by row."""

    def __init__(
        self,
        terms: Sequence[str],
        starts: NDArray[np.int64],
        rows: NDArray[np.int32],
        weights: NDArray[np.float32],
        size: int,
        mean_length: float,
    ) -> None:
        """Wraps postings; use `build` or `open`.

        Args:
            terms: V of them, sorted.
            starts: (V + 1,) where the postings of each term begin and end.
            rows: (P,) documents, each at most once among the postings of a term.
            weights: (P,) what the term adds to the score of that document.
            size: N.
            mean_length: terms of a document, repeated ones too.
        """
        self._terms, self._starts, self._rows, self._weights = terms, starts, rows, weights
        self._size, self._mean_length = size, mean_length
        self.analyzer = Analyzer()

    def __len__(self) -> int:
        return self._size

    @classmethod
    def build(cls, texts: Iterable[str]) -> "LexicalIndex":
        """Indexes texts in order, in memory; a text without terms keeps its row and is never found."""
        names, starts, blocks, size, mean_length = _weighed(texts, folder=None, most=_SORTED_AT_ONCE)
        empty = (np.zeros(0, np.int32), np.zeros(0, np.float32))
        rows, weights = (np.concatenate(parts) for parts in zip(empty, *blocks, strict=True))
        return cls(names, starts, rows, weights, size, mean_length)

    @staticmethod
    def write(texts: Iterable[str], folder: Path, *, memory_bytes: int) -> None:
        """Indexes texts into `folder`, as `build` and `save` do, in bounded memory."""
        most = max(_SORTED_AT_ONCE, min(_MOST_AT_ONCE, memory_bytes // BYTES_PER_POSTING))
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".postings-", dir=folder) as temporary:
                _save(folder, *_weighed(texts, folder=Path(temporary), most=most))

    def save(self, folder: Path) -> None:
        """Writes the index into `folder`."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            blocks = iter([(self._rows, self._weights)])
            _save(folder, self._terms, self._starts, blocks, self._size, self._mean_length)

    @classmethod
    def open(cls, folder: Path) -> "LexicalIndex":
        """Opens a saved index without reading it into memory.

        Raises:
            IndexFormatError: missing or damaged.
        """
        try:
            facts = json.loads((folder / "size.json").read_text())
            size, mean_length = int(facts["documents"]), float(facts.get("mean_length", math.nan))
            terms = _MappedTerms(folder / _TERMS_NAME)
            starts, rows, weights = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
            fits = len(starts) == len(terms) + 1 and int(starts[-1]) == len(rows) == len(weights)
        except (OSError, ValueError, KeyError, IndexError, EOFError, TypeError) as error:
            raise IndexFormatError(f"{folder}: damaged BM25 index ({error}); run `lmr embed` again") from error
        if not fits:
            raise IndexFormatError(f"{folder}: the parts of the BM25 index do not fit; run `lmr embed` again")
        return cls(terms, starts, rows, weights, size, mean_length)

    def scores(self, query: str) -> NDArray[np.float32]:
        """(N,) BM25 scores; 0 where no term of the query occurs."""
        scores = np.zeros(self._size, np.float32)
        for term in self.analyzer.terms(query):
            postings = self._postings(term)
            scores[self._rows[postings]] += self._weights[postings]
        return scores

    def score_of(self, query: str, text: str) -> float:
        """What a text would score if it were one of the documents (NaN from an index that does not know their length).

        Its terms are as rare as they are among the documents there are.
        """
        counts = Counter(self.analyzer.terms(text))
        damping = _damping(np.array([counts.total()]), self._mean_length)
        score = np.zeros(1, np.float32)  # as in the index: equal texts have equal scores
        for term in self.analyzer.terms(query):
            if counts[term]:
                postings = self._postings(term)
                rarity = _rarity(np.array([postings.stop - postings.start]), self._size)
                score += _weight(rarity, counts[term], damping)
        return float(score[0])

    def _postings(self, term: str) -> slice:
        place = bisect_left(self._terms, term)
        if place < len(self._terms) and self._terms[place] == term:
            return slice(int(self._starts[place]), int(self._starts[place + 1]))
        return slice(0, 0)

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


Blocks = Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]
"""Rows and weights of postings, by term."""


def _weighed(
    texts: Iterable[str], *, folder: Path | None, most: int
) -> tuple[list[str], NDArray[np.int64], Blocks, int, float]:
    """Sorted terms, (V + 1,) where their postings begin and end, the postings and weights, N, terms a document."""
    analyzer = Analyzer()
    postings = Postings(folder=folder, most=most)
    for text in texts:
        postings.add(analyzer.terms(text))
    names = sorted(postings.vocabulary)
    order = np.empty(len(names), np.int32)
    order[[postings.vocabulary[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    starts, found = postings.by_term(order)
    lengths = postings.lengths
    mean_length = float(lengths.mean()) if len(lengths) else 0.0
    return names, starts, _weights(found, np.diff(starts), lengths, mean_length), len(lengths), mean_length


def _weights(
    found: Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]],
    frequencies: NDArray[np.int64],
    lengths: NDArray[np.int32],
    mean_length: float,
) -> Blocks:
    """BM25 as Lucene computes it.

    Args:
        found: terms, rows and counts of postings.
        frequencies: (V,) documents that have the term.
        lengths: (N,) terms of each document.
        mean_length: their mean.
    """
    rarity, damping = _rarity(frequencies, len(lengths)), _damping(lengths, mean_length)
    for terms, rows, counts in found:
        yield rows, _weight(rarity[terms], counts, damping[rows])


def _rarity(frequencies: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    return np.asarray(np.log(1 + (size - frequencies + 0.5) / (frequencies + 0.5)))


def _damping(lengths: NDArray[Any], mean_length: float) -> NDArray[np.float64]:
    return np.asarray(K1 * (1 - B + B * lengths / max(mean_length, 1e-9)))


def _weight(rarity: NDArray[np.float64], count: Any, damping: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rarity * count / (count + damping), np.float32)


def _save(
    folder: Path, terms: Sequence[str], starts: NDArray[np.int64], blocks: Blocks, size: int, mean_length: float
) -> None:
    import pyarrow
    import pyarrow.ipc

    table = pyarrow.table({"term": pyarrow.array(terms, pyarrow.large_string())})
    with pyarrow.ipc.new_file(str(folder / _TERMS_NAME), table.schema) as writer:
        # one batch: a term is looked up by its place
        writer.write_table(table, max_chunksize=max(1, len(table)))
    np.save(folder / "starts.npy", starts)
    shape = (int(starts[-1]),)
    with (
        array_writer(folder / "rows.npy", dtype=np.int32, shape=shape) as add_rows,
        array_writer(folder / "weights.npy", dtype=np.float32, shape=shape) as add_weights,
    ):
        for rows, weights in blocks:
            add_rows(rows)
            add_weights(weights)
    facts = {"documents": size, "mean_length": mean_length, "k1": K1, "b": B}
    (folder / "size.json").write_text(json.dumps(facts))


def top_rows(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the `k` largest positive scores, best first; ties in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    order = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return order.astype(np.int64), scores[order]
