"""Fusion of two views: by weighted scores, or by ranks alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reranking.fusion import RRF_CONSTANT, fuse_ranks, fuse_scores

scores = st.lists(st.tuples(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0)), min_size=1, max_size=12)


@given(scores, st.floats(0.0, 1.0))
def test_fused_scores_lie_between_both_views(pairs, weight):
    view_K, full_K = np.array(pairs).T
    fused_K = fuse_scores(view_K, full_K, weight)
    assert (fused_K >= np.minimum(view_K, full_K) - 1e-12).all()
    assert (fused_K <= np.maximum(view_K, full_K) + 1e-12).all()


@given(scores)
def test_at_weight_1_the_region_alone_decides_and_at_0_the_full_image(pairs):
    view_K, full_K = np.array(pairs).T
    np.testing.assert_array_equal(fuse_scores(view_K, full_K, 1.0), view_K)
    np.testing.assert_array_equal(fuse_scores(view_K, full_K, 0.0), full_K)


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 8), st.integers(0, 8))
def test_ranks_are_fused_as_published(one, other, num_one, num_other):
    rankings = [[f"d{i}" for i in one[:num_one]], [f"d{i}" for i in other[:num_other]]]
    doc_ids = [f"d{i}" for i in range(8)]
    fused_K = fuse_ranks(doc_ids, rankings)
    for doc_id, fused in zip(doc_ids, fused_K, strict=True):
        terms = [1.0 / (60 + ranking.index(doc_id) + 1) for ranking in rankings if doc_id in ranking]
        assert fused == pytest.approx(sum(terms))


def test_what_both_rank_high_comes_before_what_one_alone_ranks_first():
    both, only = fuse_ranks(["both", "only"], [["x", "both"], ["only", "both"]])
    assert both > only
    assert RRF_CONSTANT == 60


def test_a_document_that_is_no_candidate_is_left_out():
    np.testing.assert_allclose(fuse_ranks(["b"], [["a", "b"]]), [1.0 / 62])
