"""Pooling, dynamic batches, and the centring or whitening of vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_retrieval.encoding.batching import token_budget_batches
from lm_retrieval.encoding.pooling import pool
from lm_retrieval.encoding.transform import fit_transform
from lm_retrieval.errors import ConfigError

MODES = ["mean", "weightedmean", "max", "lasttoken", "mean_sqrt_len_tokens"]
LENGTHS = [3, 1, 7, 0, 5]


def pooled_by_hand(states: np.ndarray, mode: str) -> np.ndarray:
    """One text: (T, D) states without padding → (D,)."""
    count = len(states)
    if count == 0:
        return np.zeros(states.shape[1])
    weights = np.arange(1, count + 1)
    return {
        "mean": lambda: states.sum(0) / count,
        "weightedmean": lambda: (weights[:, None] * states).sum(0) / weights.sum(),
        "max": lambda: states.max(0),
        "lasttoken": lambda: states[-1],
        "mean_sqrt_len_tokens": lambda: states.sum(0) / np.sqrt(count),
    }[mode]()


def states(seed: int = 0) -> torch.Tensor:
    return torch.randn(len(LENGTHS), max(LENGTHS), 6, generator=torch.Generator().manual_seed(seed)) - 2


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("mode", MODES)
def test_pooling_equals_pooling_each_text_by_itself(mode):
    hidden = states()
    found = pool(hidden, torch.tensor(LENGTHS), mode=mode)
    expected = [pooled_by_hand(hidden[row, :length].double().numpy(), mode) for row, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


def test_pooling_of_three_tokens_worked_out_by_hand():
    hidden = torch.tensor([[[1.0, -4.0], [2.0, -2.0], [6.0, -3.0], [9.0, 9.0]]])
    expected = {
        "mean": [3.0, -3.0],
        "weightedmean": [(1 + 4 + 18) / 6, (-4 - 4 - 9) / 6],
        "max": [6.0, -2.0],
        "lasttoken": [6.0, -3.0],
        "mean_sqrt_len_tokens": [9 / 3**0.5, -9 / 3**0.5],
    }
    for mode, vector in expected.items():
        assert pool(hidden, torch.tensor([3]), mode=mode)[0].tolist() == pytest.approx(vector)


@pytest.mark.parametrize("filling", [0.0, 1e30, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("mode", MODES)
def test_what_stands_in_the_padding_cannot_matter(mode, filling):
    hidden = states()
    expected = pool(hidden, torch.tensor(LENGTHS), mode=mode)
    for row, length in enumerate(LENGTHS):
        hidden[row, length:] = filling
    assert torch.equal(pool(hidden, torch.tensor(LENGTHS), mode=mode), expected)


@pytest.mark.parametrize("mode", MODES)
def test_more_padding_changes_nothing(mode):
    hidden = states()
    wider = torch.cat([hidden, torch.full((len(LENGTHS), 4, 6), 7.0)], 1)
    lengths = torch.tensor(LENGTHS)
    torch.testing.assert_close(pool(wider, lengths, mode=mode), pool(hidden, lengths, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_text_without_tokens_becomes_zeros(mode):
    vectors = pool(states(), torch.tensor(LENGTHS), mode=mode)
    assert vectors[3].tolist() == [0.0] * 6
    assert vectors[[0, 1, 2, 4]].abs().sum(1).min() > 0


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_states_are_summed_in_float32(mode):
    hidden = torch.full((1, 3000, 2), 1.0, dtype=torch.bfloat16)
    expected = {"mean_sqrt_len_tokens": 3000**0.5}.get(mode, 1.0)
    assert pool(hidden, torch.tensor([3000]), mode=mode)[0].tolist() == pytest.approx([expected] * 2, rel=1e-5)


# ---------------------------------------------------------------- batches


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=60),
    budget=st.integers(1, 100),
    most=st.none() | st.integers(1, 8),
)
def test_every_text_is_in_one_batch_and_no_batch_is_over_its_budget(lengths, budget, most):
    batches = token_budget_batches(lengths, max_batch_tokens=budget, max_batch_size=most)
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert len(batch) <= (most or len(batch))


def test_batches_worked_out_by_hand():
    lengths = [2, 9, 3, 3, 1, 12]
    batches = token_budget_batches(lengths, max_batch_tokens=10)
    # 12 is over the budget and alone; 9 alone; three of 3 fill 9 of 10; the last is left over
    assert [batch.tolist() for batch in batches] == [[5], [1], [2, 3, 0], [4]]


def test_a_batch_is_as_full_as_budget_and_size_allow():
    lengths = [4] * 10
    assert [len(batch) for batch in token_budget_batches(lengths, max_batch_tokens=13)] == [3, 3, 3, 1]
    sizes = [len(batch) for batch in token_budget_batches(lengths, max_batch_tokens=100, max_batch_size=4)]
    assert sizes == [4, 4, 2]


def test_texts_of_equal_length_keep_their_order():
    (batch,) = token_budget_batches([5, 5, 5], max_batch_tokens=100)
    assert batch.tolist() == [0, 1, 2]


def test_no_texts_make_no_batches():
    assert token_budget_batches([], max_batch_tokens=10) == []


# ---------------------------------------------------------------- centring and whitening


def data(count: int = 4000, seed: int = 0) -> np.ndarray:
    """Correlated vectors far from the origin; the variances of their directions lie within a factor of about 10."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(6) + 0.3 * generator.standard_normal((6, 6))
    return (generator.standard_normal((count, 6)) @ mixing + 5).astype(np.float32)


def test_no_transform_for_none():
    assert fit_transform([data()], method="none") is None


@pytest.mark.parametrize("method", ["center", "whiten"])
def test_transformed_data_has_zero_mean(method):
    vectors = data()
    transformed = fit_transform([vectors], method=method)(vectors)
    assert transformed.dtype == np.float32
    np.testing.assert_allclose(transformed.mean(0, dtype=np.float64), 0, atol=1e-5)


def test_centring_subtracts_the_mean_and_nothing_else():
    vectors = data()
    transform = fit_transform([vectors], method="center")
    assert transform.matrix is None
    np.testing.assert_allclose(transform(vectors[:9]), vectors[:9] - vectors.mean(0, dtype=np.float64), atol=1e-5)


def test_whitening_gives_unit_variances_and_no_correlations():
    vectors = data()
    whitened = fit_transform([vectors], method="whiten")(vectors).astype(np.float64)
    covariance = whitened.T @ whitened / len(whitened)
    np.testing.assert_allclose(covariance, np.eye(6), atol=0.1)  # shrinkage takes a little off
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-4)
    assert np.abs(np.corrcoef(vectors.T) - np.eye(6)).max() > 0.2  # there was something to take out


def test_the_variance_that_whitening_leaves_is_that_of_its_shrinkage():
    vectors = data()
    variances = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64), bias=True))
    whitened = fit_transform([vectors], method="whiten")(vectors)
    left = np.linalg.eigvalsh(np.cov(whitened.T.astype(np.float64), bias=True))
    np.testing.assert_allclose(left, np.sort(variances / (variances + 0.01 * variances.mean())), rtol=1e-3)


def test_whitening_stays_finite_for_a_direction_without_variance():
    vectors = data()
    vectors[:, 2] = 3.0
    whitened = fit_transform([vectors], method="whiten")(vectors)
    assert np.isfinite(whitened).all()
    assert np.abs(whitened).max() < 100


def test_whitening_equal_vectors_gives_zeros():
    vectors = np.ones((5, 3), np.float32)
    np.testing.assert_allclose(fit_transform([vectors], method="whiten")(vectors), 0, atol=1e-6)


@pytest.mark.parametrize("method", ["center", "whiten"])
def test_fitting_batch_by_batch_equals_fitting_at_once(method):
    vectors = data()
    whole = fit_transform([vectors], method=method)
    parts = fit_transform([vectors[:0], vectors[:1], vectors[1:1500], vectors[1500:]], method=method)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-5)
    products = [whole(vectors[:50]) @ whole(vectors[:50]).T, parts(vectors[:50]) @ parts(vectors[:50]).T]
    np.testing.assert_allclose(products[0], products[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["center", "whiten"])
@pytest.mark.parametrize("batches", [[], [np.zeros((0, 4), np.float32)], [np.ones((1, 4), np.float32)]])
def test_fewer_than_two_vectors_are_an_error(method, batches):
    with pytest.raises(ConfigError, match=f"postprocess '{method}' needs at least two texts"):
        fit_transform(iter(batches), method=method)


def test_the_bytes_of_a_transform_tell_transforms_apart():
    first = fit_transform([data()], method="whiten")
    assert first.to_bytes() == fit_transform([data()], method="whiten").to_bytes()
    others = [fit_transform([data(seed=1)], method="whiten"), fit_transform([data()], method="center")]
    assert len({first.to_bytes(), *(other.to_bytes() for other in others)}) == 3
