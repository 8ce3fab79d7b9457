"""Paired tests against SciPy, full enumeration and hand-worked examples; what chance alone gives."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lm_retrieval.errors import EvaluationError
from lm_retrieval.evaluation.significance import (
    RESAMPLES,
    PairedTest,
    bootstrap_intervals,
    holm,
    paired_tests,
    randomisation_tests,
    t_tests,
)

Values = dict[str, dict[str, dict[str, float]]]


def values_of(**systems: Any) -> Values:
    return {
        name: {f"q{number}": {"P@5": float(value)} for number, value in enumerate(values)}
        for name, values in systems.items()
    }


def between(baseline: Any, system: Any) -> PairedTest:
    (test,) = paired_tests(values_of(old=baseline, new=system), measure="P@5")
    return test


def two_systems(seed: int, size: int, *, gain: float = 0.1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    easy = generator.random(size)
    return easy, np.clip(easy + generator.normal(gain, 0.3, size), 0, 1)


def mean_difference(x: NDArray[np.float64], y: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.mean(x - y, axis=axis)


# ---------------------------------------------------------------- t-test


@pytest.mark.parametrize("size", [2, 5, 50, 300])
@pytest.mark.parametrize("seed", range(4))
def test_the_t_test_is_scipys(seed: int, size: int) -> None:
    old, new = two_systems(seed, size)
    assert between(old, new).t_test == pytest.approx(stats.ttest_rel(new, old).pvalue, rel=1e-9)


def test_the_t_test_of_a_hand_worked_example() -> None:
    # differences 1, 2, 3, 4: mean 2.5, standard error 1.29099 / 2, t = 3.87298 with 3 degrees of freedom
    test = between([0, 0, 0, 0], [1, 2, 3, 4])
    assert test.t_test == pytest.approx(0.030466, abs=1e-6)
    assert (test.difference, test.effect_size) == (2.5, pytest.approx(2.5 / 1.2909944))


# ---------------------------------------------------------------- randomisation test


def enumerated(differences: NDArray[np.float64]) -> float:
    observed = abs(differences.sum())
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    return float(np.mean([value >= observed - 1e-9 for value in sums]))


@pytest.mark.parametrize("size", [2, 3, 5, 9, 13])
def test_few_queries_are_enumerated_completely(size: int) -> None:
    old, new = two_systems(size, size)
    test = between(old, new)
    assert test.randomisation == enumerated(new - old)
    exact = stats.permutation_test((new, old), mean_difference, permutation_type="samples", n_resamples=np.inf)
    assert test.randomisation == pytest.approx(exact.pvalue, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.1, 0.2, 0.3, 1.0]), min_size=2, max_size=8))
def test_enumeration_counts_sums_that_are_equal_but_for_rounding(differences: list[float]) -> None:
    found = randomisation_tests(np.array(differences)[:, None])[0]
    assert found == enumerated(np.array(differences))


def test_three_of_three_won_is_a_quarter() -> None:
    # of 8 sign patterns only all plus and all minus are as extreme
    assert between([0, 0, 0], [0.5, 0.25, 1]).randomisation == 0.25


@pytest.mark.parametrize("gain", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("size", [14, 60, 250])
def test_random_signs_come_close_to_scipys_permutation_test(size: int, gain: float) -> None:
    old, new = two_systems(size, size, gain=gain)
    reference = stats.permutation_test(
        (new, old),
        mean_difference,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    # standard errors of both estimates together
    spread = np.sqrt(reference * (1 - reference) * (1 / RESAMPLES + 1 / 20_000))
    assert between(old, new).randomisation == pytest.approx(reference, abs=4 * spread + 2e-4)


@pytest.mark.parametrize("size", [14, 500, 4000])
def test_of_random_signs_the_observed_ones_count_too_and_p_is_never_zero(size: int) -> None:
    differences = np.stack([np.linspace(1, 2, size), np.zeros(size)], axis=1)
    extreme, equal = randomisation_tests(differences).tolist()
    if size == 14:  # 2 of 2^14 patterns: about 1 of 10,000 random ones
        assert 1 / (1 + RESAMPLES) <= extreme < 0.001
    else:
        assert extreme == 1 / (1 + RESAMPLES)
    assert equal == 1.0


@pytest.mark.parametrize("size", [40, 900])
def test_several_comparisons_at_once_give_what_each_gives_alone(size: int) -> None:
    differences = np.random.default_rng(3).normal(0.05, 0.3, (size, 5))
    for column in range(5):
        alone = differences[:, [column]]
        assert randomisation_tests(differences)[column] == randomisation_tests(alone)[0]
        np.testing.assert_allclose(bootstrap_intervals(differences)[column], bootstrap_intervals(alone)[0], rtol=1e-9)
        assert t_tests(differences)[column] == pytest.approx(t_tests(alone)[0], rel=1e-9)


# ---------------------------------------------------------------- Holm


def test_holm_of_a_hand_worked_example() -> None:
    # sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 raised to the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_ends_at_one_and_leaves_a_single_p_value_alone() -> None:
    assert holm([0.6, 0.5, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_gives_equal_p_values_equal_adjustments() -> None:
    assert holm([0.01, 0.5, 0.01]) == pytest.approx([0.03, 0.5, 0.03])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= min(1.0, raw * len(p_values))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_all_comparisons_made_together_are_adjusted_together() -> None:
    generator = np.random.default_rng(6)
    systems = {f"s{n}": generator.normal(gain, 0.4, 40) for n, gain in enumerate((0.0, 0.05, 0.4, 0.2))}
    for baseline, count in ((None, 6), ("s2", 3)):
        tests = paired_tests(values_of(**systems), measure="P@5", baseline=baseline)
        assert len(tests) == count
        assert [test.t_test_holm for test in tests] == pytest.approx(holm([test.t_test for test in tests]))
        assert [test.randomisation_holm for test in tests] == holm([test.randomisation for test in tests])
        assert any(test.significant for test in tests)
        assert any(test.randomisation < 0.05 <= test.randomisation_holm for test in tests)
        assert [test.significant for test in tests] == [test.randomisation_holm < 0.05 for test in tests]


# ---------------------------------------------------------------- intervals and effect sizes


@pytest.mark.parametrize("size", [10, 60, 250])
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_comes_close_to_scipys_percentile_bootstrap(seed: int, size: int) -> None:
    old, new = two_systems(seed, size)
    reference = stats.bootstrap(
        (new - old,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    standard_error = np.std(new - old, ddof=1) / np.sqrt(size)
    test = between(old, new)
    assert test.interval == pytest.approx((reference.low, reference.high), abs=0.15 * standard_error)
    assert test.interval[0] < test.difference < test.interval[1]


def test_the_interval_of_two_queries_ends_at_their_differences() -> None:
    # a quarter of the draws takes the one query twice, a quarter the other
    assert between([0, 0], [0.25, 0.75]).interval == (0.25, 0.75)


def test_the_effect_size_by_hand() -> None:
    # differences 0.1, 0.3, -0.1, 0.1: mean 0.1, sum of squares 0.08, over 3
    test = between([0.2, 0.2, 0.2, 0.2], [0.3, 0.5, 0.1, 0.3])
    assert test.difference == pytest.approx(0.1)
    assert test.effect_size == pytest.approx(0.1 / np.sqrt(0.08 / 3))


def test_queries_are_won_tied_and_lost_with_rounding_counted_as_a_tie() -> None:
    test = between([0.5, 0.5, 0.5, 0.5, 0.3], [0.6, 0.4, 0.5, 0.5 + 1e-12, 0.1 + 0.2])
    assert (test.wins, test.ties, test.losses) == (1, 3, 1)


# ---------------------------------------------------------------- constant differences


@pytest.mark.parametrize("size", [2, 3, 7, 20, 50, 200])
def test_equal_systems_have_nothing_to_tell_apart(size: int) -> None:
    values = np.random.default_rng(size).random(size)
    test = between(values, values + 1e-13)
    assert (test.difference, test.interval, test.effect_size) == (0.0, (0.0, 0.0), 0.0)
    assert (test.t_test, test.randomisation, test.t_test_holm, test.randomisation_holm) == (1.0, 1.0, 1.0, 1.0)
    assert (test.wins, test.ties, test.losses, test.significant) == (0, size, 0, False)


@pytest.mark.parametrize("gain", [0.25, 0.1, 0.2, 0.3, 1 / 3])
@pytest.mark.parametrize("size", [3, 7, 12, 50, 225])
def test_the_same_gain_on_every_query_is_judged_alike_whatever_its_binary_digits(size: int, gain: float) -> None:
    exact = between(np.full(size, 0.5), np.full(size, 0.75))
    test = between(np.full(size, 0.5), np.full(size, 0.5 + gain))
    assert test.difference == pytest.approx(gain)
    assert test.interval == pytest.approx((gain, gain))
    assert test.randomisation == exact.randomisation
    assert test.t_test == exact.t_test
    assert test.effect_size == exact.effect_size
    assert (test.wins, test.ties, test.losses) == (size, 0, 0)


# ---------------------------------------------------------------- symmetry and order


@pytest.mark.parametrize("size", [6, 80])
def test_swapping_the_systems_mirrors_everything(size: int) -> None:
    old, new = two_systems(4, size)
    there, back = between(old, new), between(new, old)
    assert back.difference == -there.difference
    assert back.effect_size == -there.effect_size
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-12)
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert (back.t_test, back.randomisation) == (pytest.approx(there.t_test), there.randomisation)
    assert (there.system, there.baseline, there.measure) == ("new", "old", "P@5")
    assert there.wins > there.losses > 0


def test_queries_are_paired_by_their_ids_whatever_their_order() -> None:
    old, new = two_systems(5, 30)
    values = values_of(old=old, new=new)
    shuffled = values | {"new": dict(sorted(values["new"].items(), reverse=True))}
    assert paired_tests(shuffled, measure="P@5") == paired_tests(values, measure="P@5")


def test_the_same_values_give_the_same_result_whatever_was_drawn_before() -> None:
    old, new = two_systems(6, 200)
    first = between(old, new)
    np.random.seed(7)  # noqa: NPY002 - the global generator must not matter
    np.random.random(100)  # noqa: NPY002
    assert between(old, new) == first


def test_every_two_systems_are_compared_once_or_each_with_the_baseline() -> None:
    values = values_of(a=[0, 0.5, 1], b=[0.5, 0.5, 1], c=[1, 0.75, 0])
    names = [(test.baseline, test.system) for test in paired_tests(values, measure="P@5")]
    assert names == [("a", "b"), ("a", "c"), ("b", "c")]
    tests = paired_tests(values, measure="P@5", baseline="b")
    assert [(test.baseline, test.system, test.difference) for test in tests] == [
        ("b", "a", pytest.approx(-0.5 / 3)),
        ("b", "c", pytest.approx(-0.25 / 3)),
    ]
    assert paired_tests(values_of(a=[0, 1]), measure="P@5") == ()


# ---------------------------------------------------------------- what chance gives


@pytest.mark.parametrize("test", [t_tests, randomisation_tests])
@pytest.mark.parametrize("size", [11, 40])
def test_without_a_difference_five_percent_of_the_p_values_are_below_five_percent(test: Any, size: int) -> None:
    generator = np.random.default_rng(size)
    p_values = test(generator.normal(0, 0.3, (size, 3000)))
    for level in (0.05, 0.2, 0.5):
        # 4 standard errors
        assert (p_values < level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 3000))


def test_without_a_difference_five_percent_of_the_tables_show_anything_significant() -> None:
    generator = np.random.default_rng(0)
    any_found = []
    for _ in range(300):
        systems = generator.random((5, 12))
        pairs = [systems[one] - systems[other] for one in range(5) for other in range(one)]
        any_found.append(min(holm(randomisation_tests(np.stack(pairs, axis=1)))) < 0.05)
    assert 0 < np.mean(any_found) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)


def test_the_interval_holds_the_truth_in_about_95_of_100_cases() -> None:
    generator = np.random.default_rng(1)
    intervals = bootstrap_intervals(generator.normal(0.2, 0.3, (50, 1500)), resamples=2000)
    held = ((intervals[:, 0] < 0.2) & (intervals[:, 1] > 0.2)).mean()
    assert 0.92 < held < 0.965


def test_a_real_difference_is_found() -> None:
    old, new = two_systems(0, 100, gain=0.2)
    test = between(old, new)
    assert test.significant
    assert max(test.t_test_holm, test.randomisation_holm) < 0.001
    assert test.interval[0] > 0


# ---------------------------------------------------------------- what cannot be compared


@pytest.mark.parametrize(
    ("values", "baseline", "message"),
    [
        (values_of(a=[0, 1], b=[1, 1]), "c", "baseline 'c' is none of the systems: a, b"),
        (values_of(a=[0, 1], b=[1, 1, 1]), None, "'b' was scored on other queries than the first system"),
        (values_of(a=[0, 1, 1], b=[1, 1]), None, "'b' was scored on other queries than the first system"),
        (values_of(a=[0], b=[1]), None, "at least two queries"),
        (values_of(a=[], b=[]), None, "at least two queries"),
    ],
    ids=["unknown baseline", "more queries", "fewer queries", "one query", "none"],
)
def test_what_cannot_be_compared_is_an_error(values: Values, baseline: str | None, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        paired_tests(values, measure="P@5", baseline=baseline)
