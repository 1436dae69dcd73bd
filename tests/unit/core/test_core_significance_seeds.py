"""Bootstrap over seeds and queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.core.statistics.significance import bootstrap_ratio
from pipeline.core.statistics.significance_seeds import adjust_holm, bootstrap_seeds, bootstrap_seeds_difference

DRAWS: Any = {"num_resamples": 400, "confidence": 0.95, "seed": 3}
ONES = np.ones(60)


def _hits(rate: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(60) < rate).astype(float)


def test_one_seed_is_the_bootstrap_over_queries() -> None:
    hits_Q, counted_Q = _hits(0.4, 1), _hits(0.8, 2)
    of_seeds = bootstrap_seeds(hits_Q[None], counted_Q, **DRAWS)
    of_queries = bootstrap_ratio(hits_Q, counted_Q, **DRAWS)
    assert (of_seeds.mean, of_seeds.low, of_seeds.high) == pytest.approx(
        (of_queries.mean, of_queries.low, of_queries.high)
    )


def test_mean_is_the_mean_of_the_seeds_figures() -> None:
    hits_SQ = np.stack([_hits(0.2, 1), _hits(0.6, 2)])
    wanted = float(np.mean(hits_SQ.sum(axis=1) / 60))
    assert bootstrap_seeds(hits_SQ, ONES, **DRAWS).mean == pytest.approx(wanted)


def test_seeds_that_disagree_widen_the_interval() -> None:
    hits_Q = _hits(0.5, 1)
    alike = bootstrap_seeds(np.stack([hits_Q] * 3), ONES, **DRAWS)
    apart = bootstrap_seeds(np.stack([np.zeros(60), hits_Q, np.ones(60)]), ONES, **DRAWS)
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


def test_queries_alone_move_the_interval_when_seeds_agree_on_every_query() -> None:
    constant = bootstrap_seeds(np.full((3, 60), 0.5), ONES, **DRAWS)
    assert (constant.low, constant.mean, constant.high) == pytest.approx((0.5, 0.5, 0.5))


def test_seeds_alone_move_the_interval_when_queries_agree() -> None:
    found = bootstrap_seeds(np.stack([np.zeros(60), np.ones(60)]), ONES, **DRAWS)
    assert (found.low, found.mean, found.high) == pytest.approx((0.0, 0.5, 1.0))


def test_an_arm_against_itself_differs_only_by_its_seeds() -> None:
    hits_SQ = np.stack([_hits(0.5, 1)] * 2)
    found = bootstrap_seeds_difference(hits_SQ, hits_SQ, ONES, **DRAWS)
    assert (found.low, found.mean, found.high) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    apart_SQ = np.stack([np.zeros(60), np.ones(60)])
    spread = bootstrap_seeds_difference(apart_SQ, apart_SQ, ONES, **DRAWS)
    assert spread.mean == 0.0
    assert spread.low < -0.4
    assert spread.high > 0.4


@given(
    a_SQ=arrays(np.float64, (3, 12), elements=st.floats(0, 1)),
    b_SQ=arrays(np.float64, (2, 12), elements=st.floats(0, 1)),
)
def test_a_difference_turns_its_sign_in_the_mean(a_SQ: np.ndarray, b_SQ: np.ndarray) -> None:
    forth = bootstrap_seeds_difference(a_SQ, b_SQ, np.ones(12), **DRAWS)
    back = bootstrap_seeds_difference(b_SQ, a_SQ, np.ones(12), **DRAWS)
    assert forth.mean == pytest.approx(-back.mean, abs=1e-12)
    assert forth.low <= forth.high
    a = bootstrap_seeds(a_SQ, np.ones(12), **DRAWS).mean
    b = bootstrap_seeds(b_SQ, np.ones(12), **DRAWS).mean
    assert forth.mean == pytest.approx(a - b, abs=1e-12)


def test_a_clear_difference_excludes_zero_and_a_small_one_does_not() -> None:
    low_SQ = np.stack([_hits(0.3, seed) for seed in range(3)])
    high_SQ = np.stack([_hits(0.9, seed) for seed in range(3)])
    assert bootstrap_seeds_difference(high_SQ, low_SQ, ONES, **DRAWS).low > 0.0
    alike_SQ = np.stack([_hits(0.3, seed) for seed in range(10, 13)])
    found = bootstrap_seeds_difference(alike_SQ, low_SQ, ONES, **DRAWS)
    assert found.low < 0.0 < found.high


def test_resamples_without_a_counted_query_are_left_out_and_counted() -> None:
    found = bootstrap_seeds(np.array([[1.0, 0.0, 0.0]]), np.array([1.0, 0.0, 0.0]), **DRAWS)
    assert 0 < found.num_ignored < 400
    assert (found.low, found.high) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("numerator_SQ", "denominator_Q", "message"),
    [
        ([[1.0, 0.0]], [0.0, 0.0], "the denominator sums to 0"),
        ([[1.0, 0.0]], [2.0, -1.0], "a denominator is negative"),
        ([[1.0, float("nan")]], [1.0, 1.0], "values must be finite"),
        ([[1.0, 0.0, 1.0]], [1.0, 1.0], "the same queries"),
    ],
)
def test_bad_vectors_are_refused(numerator_SQ: object, denominator_Q: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_seeds(numerator_SQ, denominator_Q, **DRAWS)  # type: ignore[arg-type]


def test_seeds_are_crossed_with_whole_clusters() -> None:
    pictures_SQ = np.repeat(np.stack([_hits(0.5, 1), _hits(0.5, 2)]), 5, axis=1)
    labels_Q = np.repeat(np.arange(60), 5)
    naive = bootstrap_seeds(pictures_SQ, np.ones(300), **DRAWS)
    clustered = bootstrap_seeds(pictures_SQ, np.ones(300), cluster_Q=labels_Q, **DRAWS)
    assert clustered.mean == naive.mean
    assert clustered.high - clustered.low > 1.5 * (naive.high - naive.low)
    # Five equal questions about a picture say as much as one.
    once = bootstrap_seeds(pictures_SQ[:, ::5], ONES, **DRAWS)
    assert (clustered.low, clustered.high) == pytest.approx((once.low, once.high))
    against = bootstrap_seeds_difference(pictures_SQ, np.zeros((1, 300)), np.ones(300), cluster_Q=labels_Q, **DRAWS)
    assert (against.low, against.high) == pytest.approx((clustered.low, clustered.high))


@given(
    a_SQ=arrays(np.float64, (2, 12), elements=st.floats(0, 1)),
    b_SQ=arrays(np.float64, (3, 12), elements=st.floats(0, 1)),
    confidence=st.floats(0.6, 0.99),
)
def test_p_value_is_below_a_level_where_its_interval_leaves_zero_out(
    a_SQ: np.ndarray, b_SQ: np.ndarray, confidence: float
) -> None:
    found = bootstrap_seeds_difference(a_SQ, b_SQ, np.ones(12), num_resamples=400, confidence=confidence, seed=3)
    assert 0.0 < found.p_value <= 1.0
    if found.low > 1e-9 or found.high < -1e-9:
        assert found.p_value <= 1.0 - confidence + 2 * 2 / 401
    elif found.low < -1e-9 and found.high > 1e-9:
        assert found.p_value >= 1.0 - confidence - 2 * 2 / 401


def test_p_value_of_arms_that_are_alike_is_one() -> None:
    hits_SQ = np.stack([_hits(0.5, 1)] * 2)
    assert bootstrap_seeds_difference(hits_SQ, hits_SQ, ONES, **DRAWS).p_value == 1.0


def test_holm_by_hand() -> None:
    # The example of Holm's procedure with four hypotheses: times 4, 3, 2, 1 in rising order, never falling.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([]) == []
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="p values must lie in"):
        adjust_holm([1.1])


@given(p_M=st.lists(st.floats(0, 1), min_size=1, max_size=15), level=st.floats(0.01, 0.2))
def test_holm_rejects_what_the_step_down_rejects(p_M: list[float], level: float) -> None:
    adjusted = adjust_holm(p_M)
    assert all(p <= q <= 1.0 for p, q in zip(p_M, adjusted, strict=True))
    rejected = set()
    for rank, place in enumerate(sorted(range(len(p_M)), key=lambda place: p_M[place])):
        if p_M[place] * (len(p_M) - rank) > level:
            break
        rejected.add(place)
    assert {place for place, q in enumerate(adjusted) if q <= level} == rejected
