"""A search of the whole corpus: the outcome from counts alone equals that of a ranking of every document."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, nDCG

from pipeline.core.ranking import compute_outcome, compute_search_outcome
from pipeline.types import Outcome


@st.composite
def corpora(draw, *, distinct: bool = False):
    """Scores of a corpus and which documents are relevant, at least one; few values, so that there are ties."""
    size = draw(st.integers(1, 25))
    numbers = st.permutations(range(size)) if distinct else st.lists(st.integers(0, 6), min_size=size, max_size=size)
    scores = np.array(draw(numbers)) / 7.0 - 0.5
    relevance = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    relevance[draw(st.integers(0, size - 1))] = True
    return scores, relevance


def _search(scores: np.ndarray, relevance: np.ndarray, depth: int) -> Outcome:
    positives, negatives = scores[relevance], scores[~relevance]
    above = [int((negatives > score).sum()) for score in positives]
    return compute_search_outcome(positives, above, negatives.max(initial=-np.inf), depth)


@settings(deadline=None)
@given(corpora(), st.integers(1, 30))
def test_outcome_equals_that_of_a_ranking_of_every_document(corpus, depth):
    scores, relevance = corpus
    # Of equal scores the relevant document comes first.
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], not relevance[i]))
    ranks = [rank for rank, i in enumerate(order, start=1) if relevance[i]]
    gains = [1.0 / math.log2(1 + rank) for rank in ranks if rank <= depth]
    best = sum(1.0 / math.log2(1 + rank) for rank in range(1, min(len(ranks), depth) + 1))
    outcome = _search(scores, relevance, depth)
    assert outcome.first_rank == min(ranks[0], depth + 1)
    assert outcome.reciprocal_rank == pytest.approx(1.0 / ranks[0] if ranks[0] <= depth else 0.0)
    assert outcome.ndcg == pytest.approx(sum(gains) / best)
    if relevance.all():
        assert outcome.margin is None
    else:
        assert outcome.margin == pytest.approx(scores[relevance].mean() - scores[~relevance].max())


@settings(deadline=None)
@given(corpora(distinct=True))
def test_outcome_as_deep_as_the_corpus_equals_that_of_a_pool_of_all(corpus):
    scores, relevance = corpus
    deep, pooled = _search(scores, relevance, len(scores)), compute_outcome(scores, relevance, int(relevance.sum()))
    assert deep.first_rank == pooled.first_rank
    assert deep.reciprocal_rank == pytest.approx(pooled.reciprocal_rank)
    assert deep.ndcg == pytest.approx(pooled.ndcg)
    assert deep.margin == (None if pooled.margin is None else pytest.approx(pooled.margin))


@settings(deadline=None)
@given(corpora(distinct=True), st.integers(1, 30))
def test_outcome_equals_ir_measures(corpus, depth):
    scores, relevance = corpus
    qrels = {"q": {f"d{i}": int(answers) for i, answers in enumerate(relevance)}}
    run = {"q": {f"d{i}": float(score) for i, score in enumerate(scores)}}
    expected = ir_measures.calc_aggregate([RR @ depth, nDCG @ depth], qrels, run)
    outcome = _search(scores, relevance, depth)
    assert outcome.reciprocal_rank == pytest.approx(expected[RR @ depth])
    assert outcome.ndcg == pytest.approx(expected[nDCG @ depth])


def test_beyond_the_depth_every_rank_is_the_same():
    near, far = (compute_search_outcome([0.1], [above], 0.5, 100) for above in (100, 99_999))
    assert near == far
    assert (near.first_rank, near.reciprocal_rank, near.ndcg) == (101, 0.0, 0.0)
    assert compute_search_outcome([0.1], [99], 0.5, 100).first_rank == 100


@pytest.mark.parametrize(
    ("scores", "above", "depth"),
    [([], [], 5), ([0.1], [1, 2], 5), ([[0.1]], [[1]], 5), ([0.1], [1], 0), ([math.nan], [1], 5), ([math.inf], [0], 5)],
)
def test_what_is_no_search_is_refused(scores, above, depth):
    with pytest.raises(ValueError, match=r"got scores|finite"):
        compute_search_outcome(scores, above, 0.0, depth)
