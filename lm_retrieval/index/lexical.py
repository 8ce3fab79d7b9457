"""BM25 over whole documents (Robertson et al., 1994).

bm25s counts and weighs; what it makes is stored as plain arrays and a sorted list of terms, which are memory-mapped: a
query touches the postings of its own terms and nothing else, and needs neither bm25s nor its imports.

Shapes: N documents, P postings, V terms.
"""

import json
import logging
from bisect import bisect_left
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
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at debug level unasked
        analyzer = Analyzer()
        vocabulary: dict[str, int] = {}
        documents = [
            np.fromiter((vocabulary.setdefault(term, len(vocabulary)) for term in analyzer.terms(text)), np.int32)
            for text in texts
        ]
        terms = sorted(vocabulary)
        if not terms:
            return cls([], np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), len(documents))
        # terms are numbered in sorted order, so that the postings need no second table
        numbers = np.empty(len(terms), np.int32)
        numbers[[vocabulary[term] for term in terms]] = np.arange(len(terms), dtype=np.int32)
        tokens = bm25s.tokenization.Tokenized(
            ids=[numbers[ids] for ids in documents], vocab={term: place for place, term in enumerate(terms)}
        )
        model = bm25s.BM25(k1=K1, b=B, method="lucene")
        model.index(tokens, create_empty_token=False, show_progress=False)
        starts, rows, weights = (model.scores[name] for name in ("indptr", "indices", "data"))
        return cls(terms, starts.astype(np.int64), rows.astype(np.int32), weights.astype(np.float32), len(documents))

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
        except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
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
    """A sorted list of terms on disk."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.ipc

        with pyarrow.memory_map(str(path)) as source:
            batches = pyarrow.ipc.open_file(source).read_all().column(0).chunks
        self._column: Any = batches[0] if batches else []

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, place: Any) -> Any:
        return self._column[place].as_py()


def top_rows(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the `k` largest positive scores, best first; ties in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    order = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return order.astype(np.int64), scores[order]
