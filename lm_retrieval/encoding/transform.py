"""Centring and whitening: what turns raw pooled states, which all point the same way, into comparable vectors.

Shapes: N vectors, D dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.errors import ConfigError

if TYPE_CHECKING:
    from lm_retrieval.config import Postprocess

Vectors = NDArray[np.float32]

# Directions with next to no variance hold noise; this share of the mean variance is added before dividing.
_SHRINKAGE = 0.01


@dataclass(frozen=True)
class Transform:
    """x → (x - mean) @ matrix, or x - mean where there is no matrix.

    Attributes:
        mean: (D,) float32.
        matrix: (D, D) float32 or None.
    """

    mean: Vectors
    matrix: Vectors | None = None

    def __call__(self, vectors: Vectors) -> Vectors:
        """(N, D) float32 → (N, D) float32."""
        centred = vectors - self.mean
        return np.asarray(centred if self.matrix is None else centred @ self.matrix, np.float32)

    def to_bytes(self) -> bytes:
        """For fingerprints."""
        return self.mean.tobytes() + (b"" if self.matrix is None else self.matrix.tobytes())


def fit_transform(batches: Iterable[Vectors], *, method: "Postprocess") -> Transform | None:
    """Fits centring or whitening (Su et al., 2021, arXiv:2103.15316) in one streaming pass; None for `none`.

    Raises:
        ConfigError: fewer than two vectors.
    """
    if method == "none":
        return None
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        if not count:
            total, products = np.zeros(batch.shape[1]), np.zeros((batch.shape[1],) * 2)
        exact = batch.astype(np.float64)
        count += len(exact)
        total += exact.sum(0)
        products += exact.T @ exact
    if count < 2:
        raise ConfigError(
            f"postprocess '{method}' needs at least two texts to fit on; use 'none' for so small a corpus"
        )
    mean = total / count
    if method == "center":
        return Transform(mean.astype(np.float32))
    covariance = products / count - np.outer(mean, mean)
    values, directions = np.linalg.eigh(covariance)
    values = np.maximum(values, 0)
    scales = 1 / np.sqrt(values + _SHRINKAGE * values.mean() + 1e-12)
    return Transform(mean.astype(np.float32), (directions * scales).astype(np.float32))


def unit_vectors(vectors: Vectors) -> Vectors:
    """(N, D) vectors scaled to length 1; the zero vector stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)
