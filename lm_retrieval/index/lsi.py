"""LSI-256: TF-IDF and a truncated SVD (Deerwester et al., 1990), the honest baseline of the encoders' size.

Shapes: N documents, V terms, D dimensions.
"""

from collections.abc import Iterable

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from lm_retrieval.corpus.words import Analyzer

DIM = 256


class LsiIndex:
    """Documents as unit vectors in the space of the largest singular values."""

    def __init__(self, texts: Iterable[str], *, dim: int = DIM) -> None:
        """Fits on the texts of a corpus; fewer documents or terms than `dim` give fewer dimensions."""
        self._analyzer = Analyzer()
        self._vocabulary: dict[str, int] = {}
        counts = self._count(texts, grow=True)
        frequency = np.asarray((counts > 0).sum(axis=0)).ravel()
        self._idf = np.log((1 + counts.shape[0]) / (1 + frequency)) + 1
        weights = self._weigh(counts)
        rank = min(dim, min(weights.shape) - 1)
        if rank < 1:
            self._terms = np.zeros((weights.shape[1], 1))
        else:
            # a fixed start makes the result the same in every run
            start = np.random.default_rng(0).standard_normal(min(weights.shape))
            _, _, terms = svds(weights, k=rank, v0=start)
            self._terms = terms.T  # (V, D)
        self.vectors = self._project(weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the document and term vectors."""
        return int(self.vectors.nbytes + self._terms.nbytes + self._idf.nbytes)

    def search(self, query: str, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and cosines of the `k` nearest documents, best first; ties in row order."""
        scores = self.vectors @ self.encode([query])[0]
        order = np.argsort(-scores, kind="stable")[:k]
        return order, scores[order]

    def encode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """(N, D) unit vectors of any texts; one without a known term is the zero vector."""
        return self._project(self._weigh(self._count(texts, grow=False)))

    def _count(self, texts: Iterable[str], *, grow: bool) -> scipy.sparse.csr_matrix:
        """(N, V) term counts; unknown terms are added or passed over."""
        indptr, indices = [0], list[int]()
        for text in texts:
            for term in self._analyzer.terms(text):
                number = (
                    self._vocabulary.setdefault(term, len(self._vocabulary)) if grow else self._vocabulary.get(term)
                )
                if number is not None:
                    indices.append(number)
            indptr.append(len(indices))
        shape = (len(indptr) - 1, max(1, len(self._vocabulary)))
        matrix = scipy.sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=shape)
        matrix.sum_duplicates()
        return matrix

    def _weigh(self, counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
        """Sublinear TF × smooth IDF, rows of unit length."""
        weights = counts.copy()
        weights.data = 1 + np.log(weights.data)
        weights = weights.multiply(self._idf).tocsr()
        norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
        return scipy.sparse.diags(1 / np.where(norms > 0, norms, 1)) @ weights

    def _project(self, weights: scipy.sparse.csr_matrix) -> NDArray[np.float32]:
        vectors = weights @ self._terms
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 1e-12, norms, 1), np.float32)
