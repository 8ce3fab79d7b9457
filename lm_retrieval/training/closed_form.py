"""A start for learned pooling in closed form: least squares towards the vectors of a teacher.

Shapes: N texts, V vocabulary, D dimensions of the teacher or hidden states, E dimensions of the encoder.
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

_RARITY = 1e-3


def rarity_weights(token_ids: Sequence[NDArray[np.integer]], *, vocab_size: int) -> NDArray[np.float32]:
    """(V,) weights a / (a + p) that are small for frequent tokens (SIF; Arora et al., 2017, ICLR)."""
    counts = np.zeros(vocab_size)
    for ids in token_ids:
        np.add.at(counts, ids, 1)
    return np.asarray(_RARITY / (_RARITY + counts / max(1.0, counts.sum())), np.float32)


def principal_axes(vectors: NDArray[np.floating], *, dim: int) -> NDArray[np.float32]:
    """(D, E) directions that keep most of the vectors' inner products; zero columns where D < E."""
    _, axes = np.linalg.eigh(np.asarray(vectors, np.float32).T @ np.asarray(vectors, np.float32))
    kept = axes[:, ::-1][:, :dim]
    return np.asarray(np.pad(kept, ((0, 0), (0, dim - kept.shape[1]))), np.float32)


def fit_token_vectors(
    token_ids: Sequence[NDArray[np.integer]],
    targets: NDArray[np.floating],
    *,
    weights: NDArray[np.float32],
    ridge: float,
    prior: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Token vectors whose weighted mean over a text comes closest to the text's target (ridge regression).

    Args:
        token_ids: N texts.
        targets: (N, E) a vector for each.
        weights: (V,) weight of each token in the mean.
        ridge: strength of the pull towards `prior`, as a share of the mean squared weight of a token.
        prior: (V, E) where tokens that occur rarely stay; zero when None.

    Returns:
        (V, E) float32; tokens that do not occur have their prior.
    """
    size = len(weights)
    result = np.zeros((size, targets.shape[1]), np.float32) if prior is None else prior.astype(np.float32, copy=True)
    texts = mean_matrix(token_ids, weights)
    used = np.flatnonzero(np.asarray((texts != 0).sum(axis=0)).ravel())
    texts = texts[:, used]
    residual = np.asarray(targets, np.float32) - texts @ result[used]
    strength = ridge * float(texts.multiply(texts).sum()) / max(1, len(used))
    if texts.shape[0] >= len(used):
        gram = (texts.T @ texts).toarray()
        right = texts.T @ residual
    else:
        gram = (texts @ texts.T).toarray()
        right = residual
    gram[np.diag_indices_from(gram)] += max(strength, 1e-8)
    solved = scipy.linalg.solve(gram, right, assume_a="pos", overwrite_a=True, overwrite_b=True, check_finite=False)
    result[used] += solved if texts.shape[0] >= len(used) else texts.T @ solved
    return result


def mean_matrix(token_ids: Sequence[NDArray[np.integer]], weights: NDArray[np.float32]) -> scipy.sparse.csr_matrix:
    """(N, V) sparse float32: the share of each token in the weighted mean of each text."""
    lengths = np.fromiter((len(ids) for ids in token_ids), np.int64, len(token_ids))
    flat = np.concatenate([*token_ids, np.zeros(0, np.int32)]).astype(np.int32)
    data = weights[flat]
    matrix = scipy.sparse.csr_matrix(
        (data, flat, np.concatenate(([0], np.cumsum(lengths)))), shape=(len(token_ids), len(weights))
    )
    matrix.sum_duplicates()
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    return scipy.sparse.diags(1 / np.where(totals > 0, totals, 1)).astype(np.float32) @ matrix


def fit_projection(states: NDArray[np.float32], targets: NDArray[np.float32], *, ridge: float) -> NDArray[np.float32]:
    """(E, D) matrix that takes (N, D) states, of about unit spread, closest to (N, E) targets (ridge regression)."""
    gram = states.T @ states
    gram[np.diag_indices_from(gram)] += ridge * len(states)
    return np.asarray(scipy.linalg.solve(gram, states.T @ targets, assume_a="pos").T, np.float32)
