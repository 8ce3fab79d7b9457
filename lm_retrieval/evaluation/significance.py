"""Is the difference between two systems real? Paired tests over the queries that both were asked.

The paired t-test and the randomisation test are the two that Smucker, Allan and Carterette (2007, CIKM) recommend;
p-values of several comparisons are adjusted after Holm (1979, Scandinavian Journal of Statistics).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lm_retrieval.errors import EvaluationError

RESAMPLES = 10_000
SIGNIFICANT = 0.05
_SEED = 0
_TIE = 1e-9
_DIGITS = 12
_BLOCK = 2_000_000  # numbers of a block of resamples: memory stays small
_MOST_BITS = 63


@dataclass(frozen=True)
class PairedTest:
    """One comparison of two systems on one measure.

    Attributes:
        difference: mean of `system` minus `baseline` over the queries.
        interval: 95 % bootstrap interval of the difference (percentiles).
        effect_size: difference divided by the standard deviation of the differences (Cohen's d of paired samples).
        t_test, randomisation: two-sided p-values.
        t_test_holm, randomisation_holm: the same, adjusted for all comparisons made together.
        wins, ties, losses: queries on which `system` is better, equal (within 1e-9), worse.
    """

    system: str
    baseline: str
    measure: str
    difference: float
    interval: tuple[float, float]
    effect_size: float
    t_test: float
    randomisation: float
    t_test_holm: float
    randomisation_holm: float
    wins: int
    ties: int
    losses: int

    @property
    def significant(self) -> bool:
        """Whether the adjusted randomisation test gives p < 0.05."""
        return self.randomisation_holm < SIGNIFICANT


def paired_tests(
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]], *, measure: str, baseline: str | None = None
) -> tuple[PairedTest, ...]:
    """Compares every system with the baseline, or every two systems, and adjusts the p-values together.

    Args:
        per_query: system → query_id → measure → value; all systems have the same queries.
        measure: which value.
        baseline: a system's name; None compares all pairs.

    Raises:
        EvaluationError: an unknown baseline, systems with different queries, or fewer than two queries.
    """
    values = _aligned(per_query, measure)
    if baseline is not None and baseline not in values:
        raise EvaluationError(f"baseline '{baseline}' is none of the systems: {', '.join(values)}")
    names = list(values)
    pairs = (
        list(combinations(names, 2)) if baseline is None else [(baseline, name) for name in names if name != baseline]
    )
    if not pairs:
        return ()
    differences = np.stack([values[system] - values[other] for other, system in pairs], axis=1)
    differences[np.abs(differences) <= _TIE] = 0.0
    # what is equal in the figures must not differ in its last binary digits
    differences = np.round(differences, _DIGITS)
    means, spreads = differences.mean(axis=0), _spreads(differences)
    t_test, randomisation = t_tests(differences), randomisation_tests(differences)
    columns = zip(
        pairs,
        means.tolist(),
        bootstrap_intervals(differences).tolist(),
        np.divide(means, spreads, out=np.zeros_like(means), where=spreads > 0).tolist(),
        t_test.tolist(),
        randomisation.tolist(),
        holm(t_test),
        holm(randomisation),
        zip(*((np.sign(differences) == sign).sum(axis=0).tolist() for sign in (1, 0, -1)), strict=True),
        strict=True,
    )
    return tuple(
        PairedTest(system, other, measure, mean, (low, high), effect, *p_values, *counts)
        for (other, system), mean, (low, high), effect, *p_values, counts in columns
    )


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Adjusted p-values in the same order: the smallest times n, the next times n - 1, …, never decreasing."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return [float(value) for value in result]


def t_tests(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, T) differences of T comparisons → (T,) two-sided p-values of Student's t-test; 1 where all are equal to 0."""
    from scipy import stats

    constant = _spreads(differences) == 0
    result = np.where(differences.mean(axis=0) == 0, 1.0, 0.0)
    result[~constant] = stats.ttest_1samp(differences[:, ~constant], 0.0, axis=0).pvalue
    return result


def _spreads(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, T) → (T,) standard deviations, exactly 0 where all values are one."""
    return np.where(np.ptp(differences, axis=0) == 0, 0.0, differences.std(axis=0, ddof=1))


def randomisation_tests(differences: NDArray[np.float64], *, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """(Q, T) differences → (T,) two-sided p-values of Fisher's randomisation test.

    How often do random signs give as large a mean difference? All 2^Q patterns are tried where they are no more than
    `resamples`; otherwise the observed pattern counts as one of the random ones, so that p is never 0. The same signs
    serve all comparisons.
    """
    size = len(differences)
    observed = np.abs(differences.sum(axis=0)) - 1e-12 * np.abs(differences).sum(axis=0)
    if size < _MOST_BITS and 2**size <= resamples:
        patterns = 2.0 * ((np.arange(2**size)[:, None] >> np.arange(size)) & 1) - 1
        return np.asarray((np.abs(patterns @ differences) >= observed).mean(axis=0))
    generator = np.random.default_rng(_SEED)
    extreme = np.zeros(differences.shape[1])
    for count in _blocks(resamples, size):
        signs = 2.0 * generator.integers(0, 2, (count, size), dtype=np.int8) - 1
        extreme += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return np.asarray((1 + extreme) / (1 + resamples))


def bootstrap_intervals(differences: NDArray[np.float64], *, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """(Q, T) differences → (T, 2) percentiles 2.5 and 97.5 of the mean over queries drawn with replacement."""
    size = len(differences)
    generator = np.random.default_rng(_SEED)
    means = []
    for count in _blocks(resamples, size):
        drawn = generator.integers(0, size, (count, size)) + size * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)
        means.append(times @ differences / size)
    return np.percentile(np.concatenate(means), (2.5, 97.5), axis=0).T


def _blocks(resamples: int, size: int) -> Iterator[int]:
    """How many resamples to make at a time."""
    block = max(1, _BLOCK // size)
    for start in range(0, resamples, block):
        yield min(block, resamples - start)


def _aligned(
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]], measure: str
) -> dict[str, NDArray[np.float64]]:
    """(Q,) values of each system, in one order of the queries."""
    queries: list[str] | None = None
    values = {}
    for name, rows in per_query.items():
        if queries is None:
            queries = list(rows)
        if rows.keys() != set(queries):
            raise EvaluationError(
                f"'{name}' was scored on other queries than the first system; they cannot be compared"
            )
        values[name] = np.array([rows[query_id][measure] for query_id in queries])
    if queries is not None and len(queries) < 2:
        raise EvaluationError("at least two queries are needed to test a difference")
    return values
