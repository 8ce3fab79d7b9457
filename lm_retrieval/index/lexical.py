"""BM25 over whole documents (Robertson et al., 1994), through bm25s, memory-mapped when opened.

Shapes: N documents.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray

from lm_retrieval.artifacts import storage_errors
from lm_retrieval.corpus.words import Analyzer
from lm_retrieval.errors import IndexFormatError

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at debug level unasked

K1 = 1.2
B = 0.75


class LexicalIndex:
    """BM25 scores of documents by row."""

    def __init__(self, model: bm25s.BM25, size: int, analyzer: Analyzer) -> None:
        """Wraps a bm25s model; use `build` or `open`."""
        self._model, self._size, self.analyzer = model, size, analyzer

    def __len__(self) -> int:
        return self._size

    @classmethod
    def build(cls, texts: Iterable[str]) -> "LexicalIndex":
        """Indexes texts in order; a text without terms keeps its row and is never found."""
        analyzer = Analyzer()
        vocabulary: dict[str, int] = {}
        rows = [
            np.fromiter((vocabulary.setdefault(term, len(vocabulary)) for term in analyzer.terms(text)), np.int32)
            for text in texts
        ]
        model = bm25s.BM25(k1=K1, b=B, method="lucene")
        if vocabulary:
            model.index(
                bm25s.tokenization.Tokenized(ids=rows, vocab=vocabulary), create_empty_token=False, show_progress=False
            )
        return cls(model, len(rows), analyzer)

    def save(self, folder: Path) -> None:
        """Writes the index into `folder`."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "size.json").write_text(json.dumps({"documents": self._size, "k1": K1, "b": B}))
            if hasattr(self._model, "vocab_dict"):
                self._model.save(str(folder), show_progress=False)

    @classmethod
    def open(cls, folder: Path) -> "LexicalIndex":
        """Opens a saved index without reading it into memory.

        Raises:
            IndexFormatError: missing or damaged.
        """
        try:
            size = int(json.loads((folder / "size.json").read_text())["documents"])
            has_terms = (folder / "params.index.json").is_file()
            model = bm25s.BM25.load(str(folder), mmap=True) if has_terms else bm25s.BM25()
            return cls(model, size, Analyzer())
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise IndexFormatError(f"{folder}: damaged BM25 index ({error}); run `lmr embed` again") from error

    def scores(self, query: str) -> NDArray[np.float32]:
        """(N,) BM25 scores; 0 where no term of the query occurs."""
        vocabulary = getattr(self._model, "vocab_dict", {})
        term_ids = [vocabulary[term] for term in self.analyzer.terms(query) if term in vocabulary]
        if not term_ids:
            return np.zeros(self._size, np.float32)
        return np.asarray(self._model.get_scores_from_ids(term_ids), np.float32)

    def search(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the best `k` documents that share a term with the query; ties in row order."""
        return top_rows(self.scores(query), k)


def top_rows(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the `k` largest positive scores, best first; ties in row order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        threshold = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= threshold]
    order = rows[np.argsort(-scores[rows], kind="stable")][:k]
    return order.astype(np.int64), scores[order]
