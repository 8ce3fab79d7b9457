"""Where tuning starts: a pooling that says, as well as least squares can, what the teacher says.

Shapes: N texts, T tokens, V vocabulary, D dimensions of teacher or hidden states, E dimensions of the encoder.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lm_retrieval.checkpoint import Checkpoint, build_pooling
from lm_retrieval.encoding.batching import token_budget_batches
from lm_retrieval.models import LanguageModel, LearnedPooling
from lm_retrieval.runtime import fast_bfloat16
from lm_retrieval.training.closed_form import (
    fit_projection,
    fit_token_vectors,
    mean_matrix,
    principal_axes,
    rarity_weights,
)

Vectors = NDArray[np.float32]
TokenIds = Sequence[NDArray[np.integer]]
_TOKEN_RIDGE = 0.1
_STATE_RIDGE = 0.1
_KNOWN = 0.99
_BATCH_TOKENS = 8192


def untaught_pooling(start: Checkpoint, token_ids: TokenIds) -> LearnedPooling:
    """A pooling that weighs rare tokens and is random otherwise: for pairs without a teacher."""
    pooling = build_pooling(start.model)
    with torch.no_grad():
        pooling.log_weights.copy_(
            torch.from_numpy(np.log(rarity_weights(token_ids, vocab_size=len(pooling.log_weights))))
        )
        pooling.token_vectors.normal_(std=pooling.dim**-0.5)
    return pooling


def taught_pooling(
    start: Checkpoint,
    token_ids: TokenIds,
    targets: Vectors,
    *,
    words: Sequence[str] = (),
    word_targets: Vectors | None = None,
) -> LearnedPooling:
    """A pooling fitted to a teacher's vectors of single words, and then to those of some texts.

    Where the start is an encoder already, its token vectors and projection are carried over into the teacher's
    space first (the teacher's first dimensions are then the encoder's own), so that words the texts do not
    have keep their meaning.

    Args:
        start: language model or encoder.
        token_ids: N texts.
        targets: (N, D) the teacher's vectors.
        words: W words.
        word_targets: (W, D) the teacher's vectors of them; shorter ones than 1 are of words it does not know.
    """
    pooling = build_pooling(start.model)
    axes = principal_axes(targets, dim=pooling.dim)
    wanted = _unit(targets @ axes)
    weights = rarity_weights(token_ids, vocab_size=start.model.vocab_size)
    states = mean_states(start.model, token_ids, weights)
    prior = np.zeros((start.model.vocab_size, pooling.dim), np.float32)
    projection = np.zeros((pooling.dim, start.model.hidden_dim), np.float32)
    mean, scale = states.mean(0), np.maximum(states.std(0), 1e-3)
    if start.pooling is not None:
        prior, projection = _carried_over(start.pooling, token_ids, targets, axes)
        mean, scale = (
            part.detach().float().cpu().numpy() for part in (start.pooling.state_mean, start.pooling.state_scale)
        )
    if word_targets is not None and len(words):
        prior = _fit_words(start, words, word_targets, axes, weights=weights, prior=prior)
    states = (states - mean) / scale
    known = mean_matrix(token_ids, weights) @ prior
    missing = wanted - known - states @ projection.T
    vectors = fit_token_vectors(token_ids, missing, weights=weights, ridge=_TOKEN_RIDGE)
    if start.pooling is None:
        missing = missing - mean_matrix(token_ids, weights) @ vectors
        projection = fit_projection(states, missing, ridge=_STATE_RIDGE)
    with torch.no_grad():
        pooling.log_weights.copy_(torch.from_numpy(np.log(weights)))
        pooling.token_vectors.copy_(torch.from_numpy(prior + vectors))
        pooling.projection.copy_(torch.from_numpy(projection))
        pooling.state_mean.copy_(torch.from_numpy(mean))
        pooling.state_scale.copy_(torch.from_numpy(scale))
    return pooling


def _fit_words(
    start: Checkpoint, words: Sequence[str], targets: Vectors, axes: Vectors, *, weights: Vectors, prior: Vectors
) -> Vectors:
    """(V, E) token vectors that come close to the teacher's vectors of single words."""
    token_ids = start.tokenizer.encode_batch(words)
    known = np.linalg.norm(targets, axis=1) > _KNOWN
    places = [place for place, ids in enumerate(token_ids) if len(ids) and known[place]]
    wanted = _unit(targets[places] @ axes)
    return fit_token_vectors(
        [token_ids[place] for place in places], wanted, weights=weights, ridge=_TOKEN_RIDGE, prior=prior
    )


def condition_states(pooling: LearnedPooling, model: LanguageModel, token_ids: TokenIds) -> None:
    """Measures mean and spread of a language model's states, for a projection that has not learned yet."""
    states = mean_states(model, token_ids, pooling.log_weights.detach().float().exp().cpu().numpy())
    with torch.no_grad():
        pooling.state_mean.copy_(torch.from_numpy(states.mean(0)))
        pooling.state_scale.copy_(torch.from_numpy(np.maximum(states.std(0), 1e-3)))


@torch.inference_mode()
def mean_states(model: LanguageModel, token_ids: TokenIds, weights: Vectors) -> Vectors:
    """(N, D) weighted mean of the hidden states of each text."""
    lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
    result = np.zeros((len(token_ids), model.hidden_dim), np.float32)
    was_training = model.training
    model.eval()
    for places in token_budget_batches(lengths, max_batch_tokens=_BATCH_TOKENS):
        padded = np.zeros((len(places), max(1, int(lengths[places[0]]))), np.int64)
        shares = np.zeros(padded.shape, np.float32)
        for row, place in enumerate(places):
            padded[row, : lengths[place]] = token_ids[place]
            shares[row, : lengths[place]] = weights[token_ids[place]]
        shares /= np.maximum(shares.sum(1, keepdims=True), 1e-9)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bfloat16(model.device)):
            hidden = model(torch.from_numpy(padded).to(model.device)).hidden
        mean = torch.bmm(torch.from_numpy(shares)[:, None].to(hidden), hidden)[:, 0]
        result[places] = mean.float().cpu().numpy()
    model.train(was_training)
    return result


def _carried_over(
    pooling: LearnedPooling, token_ids: TokenIds, targets: Vectors, axes: Vectors
) -> tuple[Vectors, Vectors]:
    """(V, E) token vectors and (E, D) projection of an encoder, seen along the axes of a teacher that contains it.

    The teacher's first `pooling.dim` dimensions are a multiple of the encoder's unit vectors; dividing by
    the usual length of the encoder's raw vectors makes up for the normalisation that is not linear.
    """
    share = float(np.linalg.norm(targets[:, : pooling.dim], axis=1).mean())
    vectors, projection, weights = (
        part.detach().float().cpu().numpy()
        for part in (pooling.token_vectors, pooling.projection, pooling.log_weights.exp())
    )
    length = float(np.linalg.norm(mean_matrix(token_ids, weights) @ vectors, axis=1).mean())
    into = axes[: pooling.dim] * (share / max(length, 1e-9))  # (E, E)
    return vectors @ into, into.T @ projection


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)
