"""Labels for the warm-up: what the frozen scorer makes of searched boxes, or of the policy's own.

No human boxes are used: a query's target box is never read here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.config import RewardParams, SearchParams
from pipeline.core.region_search import build_grid, choose_label, refine_boxes
from pipeline.core.reward import compute_reward
from pipeline.errors import StageError
from pipeline.learn.policy import Policy
from pipeline.learn.scorer import FrozenScorer
from pipeline.progress import Advance
from pipeline.types import Box, Crop, KeepFull, RegionLabel


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


def label_own_boxes(
    policy: Policy,
    scorer: FrozenScorer,
    query_ids: Sequence[str],
    search: SearchParams,
    reward: RewardParams,
    advance: Advance,
) -> list[RegionLabel]:
    """Return labels that the policy could have spoken itself (docs/method.md, D39).

    The policy is asked for a region. Its box is the label where that gains enough over the full image. Elsewhere FULL
    is, unless region search finds a crop that gains: then the policy could have done better, but not with a box that
    it knows, and the query is left out.

    Args:
        policy: as it is before SFT; asked about `batches.policy` queries at once.
        scorer: scores the boxes.
        query_ids: queries whose pools hold a positive.
        search: the grid of the search, and the gain that a crop must bring.
        reward: what a view is worth.
        advance: told how many queries are done.

    Raises:
        StageError: none of the policy's boxes gains anything.
    """
    labels: list[RegionLabel] = []
    for start in range(0, len(query_ids), policy.batch_size):
        chunk = query_ids[start : start + policy.batch_size]
        own = _label_gaining(policy, scorer, chunk, search, reward)
        rest = [query_id for query_id in chunk if query_id not in own]
        searched = search_labels(scorer, rest, search, reward, lambda _: None)
        kept = {label.query_id: label for label in searched if label.box is None} | own
        labels += [kept[query_id] for query_id in chunk if query_id in kept]
        advance(len(chunk))
    if not any(label.box for label in labels):
        raise StageError("no box of the base policy gains anything; set warmup.labels to region_search")
    return labels


def _label_gaining(
    policy: Policy, scorer: FrozenScorer, query_ids: Sequence[str], search: SearchParams, reward: RewardParams
) -> dict[str, RegionLabel]:
    """Return the labels of those queries for which the policy's own box gains enough."""
    images = [scorer.load_image(query_id) for query_id in query_ids]
    questions = [scorer.queries[query_id].question for query_id in query_ids]
    answers = policy.decide(images, questions, force_region=True)
    boxes = {
        query_id: answer.decision.box
        for query_id, answer in zip(query_ids, answers, strict=True)
        if isinstance(answer.decision, Crop)
    }
    rewards = _score_boxes(scorer, list(boxes), [[box] for box in boxes.values()], reward)
    labels = [
        choose_label(query_id, [box], earned, search.min_gain, _reward_full(scorer, query_id, reward))
        for (query_id, box), earned in zip(boxes.items(), rewards, strict=True)
    ]
    return {label.query_id: label for label in labels if label.box is not None}


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
