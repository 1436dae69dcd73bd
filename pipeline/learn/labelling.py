"""Labels for the warm-up: boxes near the policy's own or searched anywhere, by what the frozen scorer makes of them.

No human boxes are used: a query's target box is never read here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import RewardParams, SearchParams, WarmupParams
from pipeline.core.region_search import build_grid, choose_label, draw_neighbours, refine_boxes, weigh_boxes
from pipeline.core.reward import compute_reward
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

    The policy is asked for its likeliest region and draws others. Their neighbourhoods are scored, and each epoch is
    taught one box of each query, drawn by what it earns (`weigh_boxes`; docs/method.md, D39). FULL is the label where
    the full image earns as much as the boxes drawn so do on average.

    Args:
        policy: as it is before SFT.
        scorer: scores the boxes.
        query_ids: queries whose pools hold a positive.
        warmup: numbers of samples and neighbours, temperature, epochs.
        reward: what a view is worth.
        seed: of samples, neighbours and labels.
        advance: told how many queries are done.

    Returns:
        `warmup.epochs` labels for each query, those of an epoch after one another.

    Raises:
        StageError: no box gains anything over the full image.
    """
    by_query: list[list[RegionLabel]] = []
    for start in range(0, len(query_ids), _CHUNK):
        chunk = query_ids[start : start + _CHUNK]
        near = [
            _gather_boxes(roots, warmup.num_neighbours, np.random.default_rng([seed, start, row]))
            for row, roots in enumerate(_ask_for_regions(policy, scorer, chunk, warmup.num_samples, seed))
        ]
        rewards = _score_boxes(scorer, chunk, near, reward)
        for query_id, boxes, earned in zip(chunk, near, rewards, strict=True):
            full = _reward_full(scorer, query_id, reward)
            rng = np.random.default_rng([seed, *query_id.encode()])
            by_query.append(_draw_labels(query_id, boxes, earned, full, warmup, rng))
        advance(len(chunk))
    labels = [label for epoch in zip(*by_query, strict=True) for label in epoch]
    if not any(label.box for label in labels):
        raise StageError("no box near the base policy's gains anything; set warmup.labels to region_search")
    return labels


def _ask_for_regions(
    policy: Policy, scorer: FrozenScorer, query_ids: Sequence[str], num_samples: int, seed: int
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
    """Return the roots and their neighbours, evenly dealt out, without repetition."""
    moved = [
        box
        for number, root in enumerate(roots)
        for box in draw_neighbours(root, rng, len(range(number, num_neighbours, len(roots))))
    ]
    return list(dict.fromkeys([*roots, *moved]))


def _draw_labels(
    query_id: str,
    boxes: Sequence[Box],
    rewards: Sequence[float],
    full_reward: float,
    warmup: WarmupParams,
    rng: np.random.Generator,
) -> list[RegionLabel]:
    """Return one label an epoch; a query for which the policy names no region at all keeps the full image."""
    if not boxes:
        return [RegionLabel(query_id=query_id, box=None, gain=0.0)] * warmup.epochs
    weights = weigh_boxes(rewards, warmup.temperature)
    gain = float(np.dot(weights, rewards)) - full_reward
    if gain <= 0.0:
        return [RegionLabel(query_id=query_id, box=None, gain=gain)] * warmup.epochs
    drawn = rng.choice(len(boxes), size=warmup.epochs, p=weights)
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
