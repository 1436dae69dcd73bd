"""A bound on harm is one: exact tests, a choice that keeps the stated level, and a simulation against the old rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.statistics.risk_control import (
    RiskLimit,
    compute_binomial_tail,
    compute_upper_limit,
    count_controlled,
)
from pipeline.evaluation.probes.threshold import THRESHOLDS, ThresholdPoint, choose_threshold

COUNTS = st.integers(1, 60).flatmap(lambda units: st.tuples(st.integers(0, units), st.just(units)))


@given(counts=COUNTS, bound=st.floats(0, 1))
def test_tail_is_the_sum_of_binomial_chances(counts: tuple[int, int], bound: float) -> None:
    harmed, units = counts
    exact = sum(math.comb(units, k) * bound**k * (1 - bound) ** (units - k) for k in range(harmed + 1))
    if bound < 1.0:
        assert compute_binomial_tail(harmed, units, bound) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_a_bound_of_one_is_always_kept_and_a_bound_of_zero_never_shown() -> None:
    assert compute_binomial_tail(5, 5, 1.0) == 0.0
    assert compute_binomial_tail(0, 5, 0.0) == 1.0


@given(counts=COUNTS, bound=st.floats(0.001, 0.999), level=st.floats(0.001, 0.4))
def test_upper_limit_keeps_a_bound_exactly_where_the_test_rejects(
    counts: tuple[int, int], bound: float, level: float
) -> None:
    limit = compute_upper_limit(*counts, level)
    if abs(limit - bound) > 1e-9:
        assert (limit < bound) == (compute_binomial_tail(*counts, bound) < level)


def test_upper_limit_of_clopper_and_pearson_by_hand() -> None:
    # Without an event the limit is 1 - level^(1/n), the "rule of three"; with nothing but events there is none.
    assert compute_upper_limit(0, 149, 0.05) == pytest.approx(1 - 0.05 ** (1 / 149))
    assert compute_upper_limit(0, 149, 0.05) < 0.02 < compute_upper_limit(0, 148, 0.05)
    assert compute_upper_limit(7, 7, 0.05) == 1.0


@given(
    harmed=st.lists(st.integers(0, 50), max_size=12),
    bound=st.floats(0, 1),
    level=st.floats(0.01, 0.4),
)
def test_the_first_failure_ends_the_sequence(harmed: list[int], bound: float, level: float) -> None:
    num = count_controlled(harmed, 50, RiskLimit(bound, level))
    passes = [compute_binomial_tail(count, 50, bound) <= level for count in harmed]
    assert all(passes[:num])
    assert num == len(harmed) or not passes[num]


@pytest.mark.parametrize(("harmed", "units"), [(-1, 4), (5, 4), (0, 0)])
def test_counts_out_of_range_are_refused(harmed: int, units: int) -> None:
    with pytest.raises(ValueError, match="need 0 <= harmed <= units"):
        compute_binomial_tail(harmed, units, 0.1)
    with pytest.raises(ValueError, match="need 0 <= harmed <= units"):
        compute_upper_limit(harmed, units, 0.1)


@given(
    steps=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    bound=st.floats(0, 1),
    level=st.floats(0.01, 0.4),
    gains=st.randoms(use_true_random=False),
)
def test_chosen_threshold_is_the_best_of_those_that_pass(
    steps: list[int], bound: float, level: float, gains: object
) -> None:
    harmed = [0, *np.cumsum(steps).tolist()]  # from never cropping down
    curve = [
        ThresholdPoint(
            threshold=1.0 - place / 20,
            rc_rate=0.0,
            harm_rate=count / 100,
            num_harmed=count,
            cond_recall_at_1=gains.choice([0.2, 0.5, 0.9]),  # type: ignore[attr-defined]
        )
        for place, count in enumerate(harmed)
    ]
    chosen = choose_threshold(curve[::-1], 100, RiskLimit(bound, level))
    assert chosen is not None
    allowed = [curve[0], *(point for point in curve[1:] if compute_upper_limit(point.num_harmed, 100, level) <= bound)]
    best = max(point.cond_recall_at_1 or 0.0 for point in allowed)
    assert chosen == max(
        (point for point in allowed if point.cond_recall_at_1 == best), key=lambda point: point.threshold
    )


def test_without_anything_to_choose_by_nothing_is_chosen() -> None:
    limit = RiskLimit(0.02, 0.05)
    blank = ThresholdPoint(threshold=1.01, rc_rate=0.0, harm_rate=0.0, num_harmed=0, cond_recall_at_1=None)
    assert choose_threshold([], 0, limit) is None
    assert choose_threshold([blank], 10, limit) is None


def _simulate_val(rng: np.random.Generator, num_queries: int) -> list[ThresholdPoint]:
    """Draw val queries of a policy whose crops harm more, and gain more, the less sure it is."""
    sureness = rng.beta(2.0, 1.0, size=num_queries)
    draw = rng.random(num_queries)
    harmed, won = draw < _harm_of(sureness), draw > 1.0 - 0.4
    points = []
    for threshold in THRESHOLDS:
        asks = sureness >= threshold
        harm, gain = asks & harmed, asks & won
        points.append(
            ThresholdPoint(
                threshold=threshold,
                rc_rate=float(asks.mean()),
                harm_rate=float(harm.mean()),
                num_harmed=int(harm.sum()),
                cond_recall_at_1=float(0.5 + gain.mean() - harm.mean()),
            )
        )
    return points


def _harm_of(sureness: np.ndarray) -> np.ndarray:
    return 0.08 * (1.0 - sureness)


def _true_harm(threshold: float) -> float:
    """Return the harm of a threshold over the whole population, by integration over Beta(2, 1), density 2 s."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    return float(np.mean(np.where(grid >= threshold, _harm_of(grid) * 2.0 * grid, 0.0)))


def test_true_harm_breaks_the_bound_as_rarely_as_stated_and_that_of_the_old_rule_often() -> None:
    limit, num_val, num_trials = RiskLimit(bound=0.02, level=0.05), 400, 1000
    truth = {threshold: _true_harm(threshold) for threshold in THRESHOLDS}
    assert min(truth.values()) == 0.0
    assert max(truth.values()) > 1.2 * limit.bound
    rng = np.random.default_rng(17)
    broken, broken_by_old_rule, cropped = 0, 0, 0
    for _ in range(num_trials):
        curve = _simulate_val(rng, num_val)
        chosen = choose_threshold(curve, num_val, limit)
        assert chosen is not None
        old = max((p for p in curve if p.harm_rate <= limit.bound), key=lambda p: (p.cond_recall_at_1, p.threshold))
        broken += truth[chosen.threshold] > limit.bound
        broken_by_old_rule += truth[old.threshold] > limit.bound
        cropped += chosen.threshold <= 1.0
    # Three standard errors of a share of 5 % among 1,000 trials.
    assert broken / num_trials <= limit.level + 3 * math.sqrt(0.05 * 0.95 / num_trials)
    assert broken_by_old_rule / num_trials > 0.25
    assert cropped / num_trials > 0.9  # and the bound is not kept by doing nothing
