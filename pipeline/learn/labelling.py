"""Labels for the warm-up: boxes near the policy's own, or searched anywhere, by what the frozen scorer makes of them.

No human boxes are used: a query's target box is never read here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import RewardParams, SearchParams, WarmupParams
from pipeline.core.region_search import build_grid, choose_label, draw_neighbours, refine_boxes, weigh_boxes
from pipeline.core.reward import compute_reward
from pipeline.core.seeds import derive_seed
from pipeline.errors import StageError
from pipeline.learn.policy import Policy
from pipeline.learn.scorer import FrozenScorer
from pipeline.progress import Advance
from pipeline.types import Box, Crop, KeepFull, RegionLabel

_CHUNK = 64
"""Queries whose pictures are open and whose boxes are scored together."""


def search_labels(
    scorer: FrozenScorer,
    query_ids: Sequence[str],
    search: SearchParams,
    reward: RewardParams,
    advance: Advance,
    *,
    chunk_size: int = 50,
) -> list[RegionLabel]:
    """Return the best view of each query: a coarse grid of boxes, then the neighbours of the best one so far.

    Args:
        scorer: scores the boxes.
        query_ids: queries whose pools hold a positive.
        search: the grid, and the gain that a crop must bring.
        reward: what a view is worth.
        advance: told how many queries are done.
        chunk_size: queries whose boxes are scored together.
    """
    grid = build_grid(search.scales, search.stride)
    labels: list[RegionLabel] = []
    for start in range(0, len(query_ids), chunk_size):
        chunk = query_ids[start : start + chunk_size]
        boxes = [list(grid) for _ in chunk]
        rewards = _score_boxes(scorer, chunk, boxes, reward)
        for _ in range(search.num_refinements):
            near = [
                list(refine_boxes(tried[int(np.argmax(earned))])) for tried, earned in zip(boxes, rewards, strict=True)
            ]
            for row, earned in enumerate(_score_boxes(scorer, chunk, near, reward)):
                boxes[row] += near[row]
                rewards[row] += earned
        for query_id, tried, earned in zip(chunk, boxes, rewards, strict=True):
            labels.append(
                choose_label(query_id, tried, earned, search.min_gain, _reward_full(scorer, query_id, reward))
            )
        advance(len(chunk))
    return labels


def label_neighbourhoods(
    policy: Policy,
    scorer: FrozenScorer,
    query_ids: Sequence[str],
    warmup: WarmupParams,
    reward: RewardParams,
    seed: int,
    advance: Advance,
) -> list[RegionLabel]:
    """Return labels near what the policy says already, so that it learns better boxes and does not forget to point.

    The policy is asked for its likeliest region and draws others. They and boxes around them are scored, and each epoch
    is taught one box of each query, drawn by what it earns (`weigh_boxes`; docs/method.md, D39 and D41). FULL is the
    label in all epochs where the full image earns as much as boxes drawn so do on average.

    Args:
        policy: as it is before SFT.
        scorer: scores the boxes.
        query_ids: queries whose pools hold a positive.
        warmup: numbers of samples and neighbours, temperature, epochs.
        reward: what a view is worth.
        seed: of neighbours and labels; with a query's id it alone decides what is drawn for it.
        advance: told how many queries are done.

    Returns:
        `warmup.epochs` labels for each query: all queries in order, once for each epoch.

    Raises:
        StageError: no query has a box as its label.
    """
    by_query: list[list[RegionLabel]] = []
    for start in range(0, len(query_ids), _CHUNK):
        chunk = query_ids[start : start + _CHUNK]
        # One generator a query, named by its id, so that no label depends on the queries beside it.
        rngs = [np.random.default_rng(derive_seed(seed, query_id)) for query_id in chunk]
        roots = _ask_for_regions(policy, scorer, chunk, warmup.num_samples)
        boxes = [_gather_boxes(near, warmup.num_neighbours, rng) for near, rng in zip(roots, rngs, strict=True)]
        rewards = _score_boxes(scorer, chunk, boxes, reward)
        by_query += [
            _draw_labels(query_id, tried, earned, _reward_full(scorer, query_id, reward), warmup, rng)
            for query_id, tried, earned, rng in zip(chunk, boxes, rewards, rngs, strict=True)
        ]
        advance(len(chunk))
    labels = [label for epoch in zip(*by_query, strict=True) for label in epoch]
    if not any(label.box for label in labels):
        raise StageError(
            "the base policy names no region near which a box gains anything; set warmup.labels to region_search"
        )
    return labels


def _ask_for_regions(
    policy: Policy, scorer: FrozenScorer, query_ids: Sequence[str], num_samples: int
) -> list[list[Box]]:
    """Return for each query the policy's likeliest region and those that it draws; malformed ones are left out."""
    images = [scorer.load_image(query_id) for query_id in query_ids]
    questions = [scorer.queries[query_id].question for query_id in query_ids]
    likeliest = policy.decide(images, questions, force_region=True)
    drawn = policy.sample_regions(images, questions, num_samples=num_samples)
    return [
        [answer.decision.box for answer in (first, *others) if isinstance(answer.decision, Crop)]
        for first, others in zip(likeliest, drawn, strict=True)
    ]


def _gather_boxes(roots: Sequence[Box], num_neighbours: int, rng: np.random.Generator) -> list[Box]:
    """Return the policy's own boxes and neighbours of them, without repetition."""
    # A box that the policy draws often has that many shares of the neighbours, but one share of the labels' softmax.
    return list(dict.fromkeys([*roots, *draw_neighbours(roots, rng, num_neighbours)]))


def _draw_labels(
    query_id: str,
    boxes: Sequence[Box],
    rewards: Sequence[float],
    full_reward: float,
    warmup: WarmupParams,
    rng: np.random.Generator,
) -> list[RegionLabel]:
    """Return one label an epoch: a box drawn by its share, or FULL where the shares' mean reward is no better.

    The mean and not the best box decides, since boxes drawn in these shares are what the policy will have learned to
    name. Where the policy names no region at all, FULL is the only answer that it can give.
    """
    shares = weigh_boxes(rewards, warmup.temperature) if boxes else []
    gain = float(np.dot(shares, rewards)) - full_reward if boxes else 0.0
    if gain <= 0.0:
        return [RegionLabel(query_id=query_id, box=None, gain=gain)] * warmup.epochs
    drawn = rng.choice(len(boxes), size=warmup.epochs, p=shares)
    return [RegionLabel(query_id=query_id, box=boxes[index], gain=rewards[index] - full_reward) for index in drawn]


def _reward_full(scorer: FrozenScorer, query_id: str, reward: RewardParams) -> float:
    return compute_reward(KeepFull(), scorer.get_baseline(query_id).outcome, None, reward).total


def _score_boxes(
    scorer: FrozenScorer, query_ids: Sequence[str], boxes: Sequence[Sequence[Box]], reward: RewardParams
) -> list[list[float]]:
    views = [(query_id, box) for query_id, row in zip(query_ids, boxes, strict=True) for box in row]
    scored = iter(scorer.score_views(views))
    return [
        [
            compute_reward(Crop(box), scorer.get_baseline(query_id).outcome, next(scored).outcome, reward).total
            for box in row
        ]
        for query_id, row in zip(query_ids, boxes, strict=True)
    ]
