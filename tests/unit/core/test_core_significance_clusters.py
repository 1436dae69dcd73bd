"""Queries that share a picture are drawn together: same draws where none do, honest coverage where some do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.statistics.significance import (
    bootstrap_harmonic_mean,
    bootstrap_ratio,
    bootstrap_ratio_difference,
    randomisation_test,
)

DRAWS: Any = {"num_resamples": 300, "confidence": 0.95, "seed": 3}


def _draw_queries(seed: int, num_queries: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random(num_queries)


@settings(deadline=None)
@given(labels=st.permutations(range(40)))
def test_clusters_of_one_query_change_nothing_whatever_they_are_called(labels: list[int]) -> None:
    a, b, counted = _draw_queries(1), _draw_queries(2), (_draw_queries(3) > 0.4).astype(float)
    names = [f"images/{label}.jpg" for label in labels]
    for cluster_Q in (labels, names):
        draws = {**DRAWS, "cluster_Q": cluster_Q}
        assert bootstrap_ratio(a * counted, counted, **draws) == bootstrap_ratio(a * counted, counted, **DRAWS)
        assert bootstrap_ratio_difference(a, counted, b, counted, **draws) == bootstrap_ratio_difference(
            a, counted, b, counted, **DRAWS
        )
        rates = [(a * counted, counted), (b * (1 - counted), 1 - counted)]
        assert bootstrap_harmonic_mean(rates, **draws) == bootstrap_harmonic_mean(rates, **DRAWS)
        assert randomisation_test(a, b, num_resamples=200, seed=1, cluster_Q=cluster_Q) == randomisation_test(
            a, b, num_resamples=200, seed=1
        )


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_order_of_queries_inside_a_cluster_and_its_copies_do_not_matter(sizes: list[int], seed: int) -> None:
    labels_Q = np.repeat(np.arange(len(sizes)), sizes)
    values_Q = np.random.default_rng(seed).random(len(labels_Q))
    found = bootstrap_ratio(values_Q, np.ones(len(labels_Q)), cluster_Q=labels_Q, **DRAWS)
    # A cluster is its sums: one row with the same sums draws the same interval.
    sums_G, sizes_G = np.bincount(labels_Q, values_Q), np.array(sizes, dtype=float)
    merged = bootstrap_ratio(sums_G, sizes_G, **DRAWS)
    assert (found.mean, found.low, found.high) == pytest.approx((merged.mean, merged.low, merged.high))


def _simulate_pictures(rng: np.random.Generator, num_pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and pictures of queries: a picture is easy or hard, and has 1 to 8 questions. Half of all hit."""
    num_questions = rng.integers(1, 9, size=num_pictures)
    ease = rng.choice([0.1, 0.9], size=num_pictures)
    picture_Q = np.repeat(np.arange(num_pictures), num_questions)
    return (rng.random(len(picture_Q)) < ease[picture_Q]).astype(float), picture_Q


def test_coverage_on_clustered_queries_is_nominal_and_that_of_the_naive_bootstrap_is_not() -> None:
    rng = np.random.default_rng(5)
    num_trials = 400
    covered, covered_naively = 0, 0
    for trial in range(num_trials):
        hit_Q, picture_Q = _simulate_pictures(rng, 80)
        draws = {**DRAWS, "seed": trial}
        honest = bootstrap_ratio(hit_Q, np.ones(len(hit_Q)), cluster_Q=picture_Q, **draws)
        naive = bootstrap_ratio(hit_Q, np.ones(len(hit_Q)), **draws)
        covered += honest.low <= 0.5 <= honest.high
        covered_naively += naive.low <= 0.5 <= naive.high
    # 400 trials at 95 % have a standard error of 1.1 %; a percentile bootstrap of 80 clusters is a little narrow.
    assert 0.92 <= covered / num_trials <= 0.98
    assert covered_naively / num_trials < 0.80


def test_coverage_of_a_paired_difference_on_clustered_queries() -> None:
    rng = np.random.default_rng(6)
    num_trials, covered = 300, 0
    for trial in range(num_trials):
        picture_Q = np.repeat(np.arange(60), 4)
        prone = rng.random(60) < 0.5  # these pictures gain under a, the others lose as much
        a_Q = (rng.random(240) < np.where(prone, 0.8, 0.4)[picture_Q]).astype(float)
        b_Q = (rng.random(240) < np.where(prone, 0.4, 0.8)[picture_Q]).astype(float)
        draws = {**DRAWS, "seed": trial, "cluster_Q": picture_Q}
        found = bootstrap_ratio_difference(a_Q, np.ones(240), b_Q, np.ones(240), **draws)
        covered += found.low <= 0.0 <= found.high
    assert 0.91 <= covered / num_trials <= 0.98


def test_p_values_are_honest_on_clustered_queries_and_naive_ones_are_not() -> None:
    rng = np.random.default_rng(7)
    picture_Q = np.repeat(np.arange(40), 6)
    p_values, naive = [], []
    for trial in range(300):
        shift = rng.normal(size=40)[picture_Q]  # a picture favours one system or the other, none on the whole
        a_Q = shift + rng.normal(size=240)
        p_values.append(randomisation_test(a_Q, np.zeros(240), num_resamples=199, seed=trial, cluster_Q=picture_Q))
        naive.append(randomisation_test(a_Q, np.zeros(240), num_resamples=199, seed=trial))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert np.mean(np.array(naive) <= 0.05) > 0.2


def test_one_label_a_query_is_asked_for() -> None:
    with pytest.raises(ValueError, match="need one cluster for each of 3 queries"):
        bootstrap_ratio(np.ones(3), np.ones(3), cluster_Q=[1, 2], **DRAWS)
    with pytest.raises(ValueError, match="need one cluster for each of 3 queries"):
        randomisation_test(np.ones(3), np.ones(3), num_resamples=9, seed=0, cluster_Q=[1, 2])
