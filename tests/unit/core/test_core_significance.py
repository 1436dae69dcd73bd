import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.statistics import significance
from pipeline.core.statistics.significance import bootstrap_ratio, bootstrap_ratio_difference, randomisation_test

SETTINGS = {"num_resamples": 2000, "confidence": 0.95, "seed": 3}
ONES = np.ones(200)


@settings(deadline=None)
@given(st.floats(-10, 10), st.integers(1, 30))
def test_constants_have_an_interval_without_width(value, num_queries):
    interval = bootstrap_ratio(
        np.full(num_queries, value), np.ones(num_queries), num_resamples=100, confidence=0.9, seed=1
    )
    assert (interval.mean, interval.low, interval.high) == pytest.approx((value, value, value))


def test_mean_is_the_ratio_of_sums_not_the_mean_of_ratios():
    interval = bootstrap_ratio([1.0, 2.0, 3.0], [1.0, 1.0, 8.0], **SETTINGS)
    assert interval.mean == pytest.approx(6 / 10)
    assert interval.low < interval.mean < interval.high


def test_width_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.4, 0.2, 400)
    interval = bootstrap_ratio(values, np.ones(400), num_resamples=8000, confidence=0.95, seed=5)
    half = 1.959964 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_bootstrap_distribution_equals_full_enumeration():
    values = np.array([0.0, 1.0, 5.0])
    exact = np.quantile([values[list(draw)].mean() for draw in product(range(3), repeat=3)], [0.1, 0.9])
    interval = bootstrap_ratio(values, np.ones(3), num_resamples=20_000, confidence=0.8, seed=2)
    assert (interval.low, interval.high) == pytest.approx(tuple(exact), abs=1e-9)


def test_coverage_of_the_interval_on_simulated_queries():
    rng = np.random.default_rng(11)
    num_covered = 0
    for trial in range(300):
        answerable = rng.random(120) < 0.7
        hit = answerable & (rng.random(120) < 0.6)
        interval = bootstrap_ratio(hit, answerable, num_resamples=300, confidence=0.9, seed=trial)
        num_covered += interval.low <= 0.6 <= interval.high
    assert 0.84 <= num_covered / 300 <= 0.95


def test_difference_is_paired():
    rng = np.random.default_rng(4)
    b = rng.random(200)  # spread out, but a is better by exactly 0.1 everywhere
    interval = bootstrap_ratio_difference(b + 0.1, ONES, b, ONES, **SETTINGS)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))
    assert bootstrap_ratio(b, ONES, **SETTINGS).high - bootstrap_ratio(b, ONES, **SETTINGS).low > 0.05


def test_difference_is_a_minus_b_and_changes_sign_when_swapped():
    rng = np.random.default_rng(5)
    a, b = rng.random(200) + 0.5, rng.random(200)
    one = bootstrap_ratio_difference(a, ONES, b, ONES, **SETTINGS)
    other = bootstrap_ratio_difference(b, ONES, a, ONES, **SETTINGS)
    assert one.low > 0.0
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))


def test_difference_with_its_own_denominators():
    interval = bootstrap_ratio_difference([1.0, 1.0], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0], **SETTINGS)
    assert interval.mean == pytest.approx(0.5 - 2.0)


def test_resamples_with_an_empty_denominator_are_counted_not_invented():
    interval = bootstrap_ratio([1.0, 0.0], [1.0, 0.0], **SETTINGS)
    assert (interval.mean, interval.low, interval.high) == (1.0, 1.0, 1.0)
    assert 400 < interval.num_ignored < 600  # a quarter of the draws miss the first query twice
    assert bootstrap_ratio([1.0, 0.0], [1.0, 1.0], **SETTINGS).num_ignored == 0


@pytest.mark.parametrize("numerator", [[0.0, 0.0], [1.0, 2.0]])
def test_zero_denominator_is_an_error(numerator):
    with pytest.raises(ValueError, match="sums to 0"):
        bootstrap_ratio(numerator, [0.0, 0.0], **SETTINGS)
    with pytest.raises(ValueError, match="sums to 0"):
        bootstrap_ratio_difference([1.0, 1.0], [1.0, 1.0], numerator, [0.0, 0.0], **SETTINGS)


def test_seed_confidence_and_resamples_each_change_the_interval():
    values = np.random.default_rng(6).random(50)
    base = {"num_resamples": 500, "confidence": 0.9, "seed": 1}
    before = bootstrap_ratio(values, np.ones(50), **base)
    assert bootstrap_ratio(values, np.ones(50), **base) == before
    assert bootstrap_ratio(values, np.ones(50), **(base | {"seed": 2})) != before
    assert bootstrap_ratio(values, np.ones(50), **(base | {"num_resamples": 501})) != before
    wider = bootstrap_ratio(values, np.ones(50), **(base | {"confidence": 0.99}))
    assert wider.low < before.low < before.high < wider.high


def test_chunks_do_not_change_the_bootstrap(monkeypatch):
    values = np.random.default_rng(6).random(50)
    whole = bootstrap_ratio(values, np.ones(50), **SETTINGS)
    monkeypatch.setattr(significance, "_CHUNK_CELLS", 3300)
    chunked = bootstrap_ratio(values, np.ones(50), **SETTINGS)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_chunks_do_not_bias_the_randomisation(monkeypatch):
    values = np.random.default_rng(6).random(50)
    whole = randomisation_test(values, values[::-1] * 0.9, num_resamples=2000, seed=1)
    monkeypatch.setattr(significance, "_CHUNK_CELLS", 3300)
    chunked = randomisation_test(values, values[::-1] * 0.9, num_resamples=2000, seed=1)
    assert 0.05 < whole < 0.95
    assert chunked == pytest.approx(whole, abs=0.06)


def test_randomisation_of_equal_systems_is_1():
    values = np.random.default_rng(1).random(40)
    assert randomisation_test(values, values, num_resamples=200, seed=1) == 1.0


def test_randomisation_of_a_clear_difference_is_the_least_possible():
    values = np.random.default_rng(1).random(60)
    assert randomisation_test(values + 0.2, values, num_resamples=999, seed=1) == pytest.approx(1 / 1000)


def test_randomisation_agrees_with_all_sign_vectors():
    difference = np.array([0.5, 0.2, -0.1, 0.4, 0.3, -0.05, 0.25, 0.1])
    sums = [abs(np.dot(signs, difference)) for signs in product((-1.0, 1.0), repeat=8)]
    exact = np.mean([value >= abs(difference.sum()) - 1e-9 for value in sums])
    p = randomisation_test(difference, np.zeros(8), num_resamples=40_000, seed=9)
    assert p == pytest.approx(exact, abs=0.005)


def test_randomisation_is_two_sided():
    rng = np.random.default_rng(2)
    a, b = rng.random(50), rng.random(50)
    assert randomisation_test(a, b, num_resamples=400, seed=1) == randomisation_test(b, a, num_resamples=400, seed=1)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(8)
    p = np.sort(
        [randomisation_test(rng.random(40), rng.random(40), num_resamples=199, seed=trial) for trial in range(400)]
    )
    # Kolmogorov-Smirnov distance; its 1 % critical value is 1.63 / sqrt(400) = 0.0815
    assert np.abs(p - np.arange(1, 401) / 400).max() < 0.0815


def test_randomisation_depends_on_seed_and_resamples():
    rng = np.random.default_rng(3)
    a, b = rng.random(50), rng.random(50)
    p = randomisation_test(a, b, num_resamples=1000, seed=1)
    assert randomisation_test(a, b, num_resamples=1000, seed=1) == p
    assert any(randomisation_test(a, b, num_resamples=1000, seed=seed) != p for seed in (2, 3))
    assert randomisation_test(a, b, num_resamples=7, seed=1) * 8 == pytest.approx(
        round(randomisation_test(a, b, num_resamples=7, seed=1) * 8)
    )


@pytest.mark.parametrize(
    ("numerator", "denominator", "changed", "match"),
    [
        ([], [], {}, "non-empty"),
        ([1.0], [1.0, 1.0], {}, "same queries"),
        ([math.nan, 1.0], [1.0, 1.0], {}, "finite"),
        ([1.0, 1.0], [-1.0, 2.0], {}, "negative"),
        ([1.0, 1.0], [1.0, 1.0], {"num_resamples": 0}, "num_resamples"),
        ([1.0, 1.0], [1.0, 1.0], {"confidence": 1.0}, "confidence"),
    ],
)
def test_bootstrap_refuses_bad_arguments(numerator, denominator, changed, match):
    with pytest.raises(ValueError, match=match):
        bootstrap_ratio(numerator, denominator, **(SETTINGS | changed))


def test_randomisation_refuses_bad_arguments():
    with pytest.raises(ValueError, match="same queries"):
        randomisation_test([1.0], [1.0, 2.0], num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="num_resamples"):
        randomisation_test([1.0], [2.0], num_resamples=0, seed=0)
