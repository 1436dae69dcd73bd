import math
import statistics

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success, nDCG

from pipeline.core.metrics import (
    compute_conditional_recall,
    compute_harmonic_mean,
    compute_hit_at,
    compute_ndcg,
    compute_reciprocal_rank,
)
from pipeline.core.ranking import compute_outcome, rank_candidates


@st.composite
def pools(draw):
    size = draw(st.integers(1, 20))
    scores = draw(st.permutations(range(size)))  # distinct: ir_measures breaks ties by document id
    relevance = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    outside = draw(st.integers(0, 25))
    return np.array(scores) / 7.0 - 1.0, np.array(relevance), outside


@settings(deadline=None)
@given(pools())
def test_outcome_and_metrics_equal_ir_measures(pool):
    scores, relevance, outside = pool
    size = len(scores)
    num_relevant = int(relevance.sum()) + outside
    outcome = compute_outcome(scores, relevance, num_relevant)

    qrels = {"q": {f"d{i}": int(rel) for i, rel in enumerate(relevance)} | {f"x{i}": 1 for i in range(outside)}}
    run = {"q": {f"d{i}": float(score) for i, score in enumerate(scores)}}
    measures = [RR, nDCG @ size, Success @ 1, Success @ 5]
    expected = ir_measures.calc_aggregate(measures, qrels, run)
    assert outcome.reciprocal_rank == pytest.approx(expected[RR])
    assert outcome.ndcg == pytest.approx(expected[nDCG @ size])
    assert compute_hit_at(outcome.first_rank, 1) == expected[Success @ 1]
    assert compute_hit_at(outcome.first_rank, 5) == expected[Success @ 5]


@settings(deadline=None)
@given(pools())
def test_margin_is_mean_of_positives_minus_best_negative(pool):
    scores, relevance, _ = pool
    margin = compute_outcome(scores, relevance, int(relevance.sum())).margin
    positives = [score for score, rel in zip(scores, relevance, strict=True) if rel]
    negatives = [score for score, rel in zip(scores, relevance, strict=True) if not rel]
    if positives and negatives:
        assert margin == pytest.approx(sum(positives) / len(positives) - max(negatives))
    else:
        assert margin is None


def test_outcome_by_hand():
    outcome = compute_outcome([0.2, 0.9, 0.5, 0.1], [True, False, False, True], 3)
    assert outcome.first_rank == 3
    assert outcome.reciprocal_rank == pytest.approx(1 / 3)
    gain = 1 / math.log2(4) + 1 / math.log2(5)
    assert outcome.ndcg == pytest.approx(gain / (1 + 1 / math.log2(3) + 1 / math.log2(4)))
    assert outcome.margin == pytest.approx(0.15 - 0.9)


def test_pool_without_a_positive_is_counted_as_zero():
    outcome = compute_outcome([0.3, 0.2], [False, False], 0)
    assert (outcome.first_rank, outcome.reciprocal_rank, outcome.ndcg, outcome.margin) == (
        None,
        0.0,
        0.0,
        None,
    )
    assert compute_hit_at(None, 20) == 0.0


def test_ties_keep_the_pools_order():
    assert rank_candidates([0.5, 0.9, 0.5, 0.9, 0.5]).tolist() == [1, 3, 0, 2, 4]
    assert compute_outcome([0.5, 0.5], [False, True], 1).first_rank == 2
    many = np.tile([0.1, 0.9, 0.5], 40)
    assert rank_candidates(many).tolist() == sorted(range(120), key=lambda i: (-many[i], i))


@settings(deadline=None)
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=30))
def test_order_is_a_permutation_with_falling_scores(scores):
    order = rank_candidates(scores)
    assert sorted(order.tolist()) == list(range(len(scores)))
    assert (np.diff(np.array(scores)[order]) <= 0).all()


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], [0.1, math.nan], [math.inf, 0.1]])
def test_scores_that_cannot_be_ranked_are_refused(scores):
    with pytest.raises(ValueError, match="finite"):
        rank_candidates(scores)


def test_outcome_refuses_inputs_that_contradict_each_other():
    with pytest.raises(ValueError, match="differ in shape"):
        compute_outcome([0.1, 0.2], [True], 1)
    with pytest.raises(ValueError, match="num_relevant is 1"):
        compute_outcome([0.1, 0.2], [True, True], 1)


def test_metrics_refuse_ranks_below_1():
    for rank in (0, -1):
        with pytest.raises(ValueError, match="ranks start at 1"):
            compute_reciprocal_rank(rank)
        with pytest.raises(ValueError, match="ranks start at 1"):
            compute_hit_at(rank, 1)
    with pytest.raises(ValueError, match="k must be"):
        compute_hit_at(1, 0)
    with pytest.raises(ValueError, match="non-empty"):
        compute_ndcg([], 1)


def test_conditional_recall_is_a_ratio_of_sums():
    assert compute_conditional_recall([1, 0, 0, 1], [1, 1, 0, 1]) == pytest.approx(2 / 3)


def test_conditional_recall_refuses_the_undefined_and_the_impossible():
    with pytest.raises(ValueError, match="undefined"):
        compute_conditional_recall([0, 0], [0, 0])
    with pytest.raises(ValueError, match="holds no positive"):
        compute_conditional_recall([1, 0], [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        compute_conditional_recall([1, 0], [1])


@given(st.lists(st.floats(0.0, 1.0, allow_subnormal=False), min_size=1, max_size=5))
def test_harmonic_mean_equals_that_of_the_standard_library(rates):
    assert compute_harmonic_mean(rates) == pytest.approx(statistics.harmonic_mean(rates))


def test_harmonic_mean_of_infoseek_s_two_splits():
    assert compute_harmonic_mean([0.3, 0.6]) == pytest.approx(0.4)
    assert compute_harmonic_mean([0.0, 0.6]) == 0.0


@pytest.mark.parametrize("rates", [[], 0.5, [-0.1], [1.1], [math.nan]])
def test_harmonic_mean_refuses_what_is_no_rate(rates):
    with pytest.raises(ValueError, match="rates must"):
        compute_harmonic_mean(rates)
