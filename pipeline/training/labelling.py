"""Labels for the warm-up: boxes near the policy's own or searched anywhere, by what the frozen scorer makes of them.

No human boxes are used: a query's target box is never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pipeline.config import RewardParams, SearchParams, WarmupParams
from pipeline.core.boxes import compute_iou
from pipeline.core.region_search import RESHAPINGS, Reshaping, build_grid, choose_label, refine_boxes
from pipeline.core.reward import compute_reward
from pipeline.core.seeds import derive_seed
from pipeline.errors import StageError
from pipeline.policy.policy import Policy
from pipeline.process.progress import Advance, track
from pipeline.training.scorers import RewardScorer
from pipeline.types import Box, Crop, KeepFull, RegionLabel

_CHUNK: Final = 64
"""Queries whose pictures are open together."""

_ELSEWHERE: Final = 0.3
"""Two boxes of less IoU than this show different things."""


def search_labels(
    scorer: RewardScorer,
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
    scorer: RewardScorer,
    query_ids: Sequence[str],
    warmup: WarmupParams,
    reward: RewardParams,
    seed: int,
    advance: Advance,
) -> tuple[list[RegionLabel], Reshaping]:
    """Return labels near what the policy says already, so that it learns better boxes and does not forget to point.

    The policy names its likeliest box for each query and draws others. Two questions are then put to the scorer, each
    where it can answer it (docs/method.md, D39):
    - How should a box lie around the thing that it shows? One reshaping is chosen for all queries, the one of highest
      mean reward. Chosen query by query it would follow the scorer's noise.
    - Which thing is asked about? A drawn box that lies elsewhere becomes the label if it earns much more than the
      policy's own: such a difference is no noise.
    The full image is the label where it earns as much as that box.

    Args:
        policy: as it is before SFT.
        scorer: scores the boxes.
        query_ids: queries whose pools hold a positive.
        warmup: number of samples, and what a box elsewhere must gain.
        reward: what a view is worth.
        seed: of the samples.
        advance: told how many queries are done.

    Returns:
        One label a query, in order, and the reshaping that was chosen.

    Raises:
        StageError: the policy names no region, or none gains anything over the full image.
    """
    regions: list[list[Box]] = []
    for start in range(0, len(query_ids), _CHUNK):
        chunk = query_ids[start : start + _CHUNK]
        regions += _ask_for_regions(policy, scorer, chunk, warmup.num_samples, seed)
        advance(len(chunk))
    own = {query_id: boxes[0] for query_id, boxes in zip(query_ids, regions, strict=True) if boxes}
    reshaping = choose_reshaping(scorer, own, reward)
    elsewhere = {
        query_id: [box for box in boxes[1:] if compute_iou(box, boxes[0]) < _ELSEWHERE]
        for query_id, boxes in zip(query_ids, regions, strict=True)
        if boxes
    }
    best = _find_best(scorer, own, elsewhere, reshaping, warmup.min_gain_elsewhere, reward)
    labels = [_label(query_id, best.get(query_id), _reward_full(scorer, query_id, reward)) for query_id in query_ids]
    if not any(label.box for label in labels):
        raise StageError("no box of the base policy gains anything; set warmup.labels to region_search")
    return labels, reshaping


def choose_reshaping(scorer: RewardScorer, own: Mapping[str, Box], reward: RewardParams) -> Reshaping:
    """Return the reshaping of highest mean reward over all queries; of equals the first.

    Args:
        scorer: scores the boxes.
        own: query id -> the policy's box.
        reward: what a view is worth.
    """
    if not own:
        raise StageError("the base policy names no region; set warmup.labels to region_search")
    means = []
    with track("warmup: reshapings tried", len(RESHAPINGS)) as advance:
        for reshaping in RESHAPINGS:
            rewards = _score_boxes(scorer, list(own), _reshape_all(scorer, own, reshaping), reward)
            means.append(float(np.mean([earned for (earned,) in rewards])))
            advance(1)
    return RESHAPINGS[int(np.argmax(means))]  # of equals the first, which changes a box the least


def _reshape_all(scorer: RewardScorer, boxes: Mapping[str, Box], reshaping: Reshaping) -> list[list[Box]]:
    return [[_reshape(scorer, query_id, box, reshaping)] for query_id, box in boxes.items()]


def _reshape(scorer: RewardScorer, query_id: str, box: Box, reshaping: Reshaping) -> Box:
    query = scorer.queries[query_id]
    return reshaping.apply(box, query.width_px, query.height_px)


def _find_best(
    scorer: RewardScorer,
    own: Mapping[str, Box],
    elsewhere: Mapping[str, Sequence[Box]],
    reshaping: Reshaping,
    min_gain: float,
    reward: RewardParams,
) -> dict[str, tuple[Box, float]]:
    """Return each query's best box with what it earns: the policy's own, unless one elsewhere gains enough over it."""
    boxes = [[own[query_id], *elsewhere[query_id]] for query_id in own]
    crops = [
        [_reshape(scorer, query_id, box, reshaping) for box in row] for query_id, row in zip(own, boxes, strict=True)
    ]
    rewards = _score_boxes(scorer, list(own), crops, reward)
    best: dict[str, tuple[Box, float]] = {}
    for query_id, tried, earned in zip(own, boxes, rewards, strict=True):
        # The policy's own box comes first, so that of equals it stays.
        index = int(np.argmax([earned[0], *(value - min_gain for value in earned[1:])]))
        best[query_id] = (tried[index], earned[index])
    return best


def _label(query_id: str, best: tuple[Box, float] | None, full_reward: float) -> RegionLabel:
    """Return the box where it earns more than the full image; a query for which no region was named keeps it."""
    if best is None:
        return RegionLabel(query_id=query_id, box=None, gain=0.0)
    box, earned = best
    gain = earned - full_reward
    return RegionLabel(query_id=query_id, box=box if gain > 0.0 else None, gain=gain)


def _ask_for_regions(
    policy: Policy, scorer: RewardScorer, query_ids: Sequence[str], num_samples: int, seed: int
) -> list[list[Box]]:
    """Return for each query the policy's likeliest region and those that it draws; malformed ones are left out."""
    images = [scorer.load_image(query_id) for query_id in query_ids]
    questions = [scorer.queries[query_id].question for query_id in query_ids]
    likeliest = policy.decide(images, questions, force_region=True)
    seeds = [derive_seed(seed, query_id) for query_id in query_ids]
    drawn = policy.sample_regions(images, questions, num_samples=num_samples, seeds=seeds)
    return [
        [answer.decision.box for answer in (first, *others) if isinstance(answer.decision, Crop)]
        for first, others in zip(likeliest, drawn, strict=True)
    ]


def _reward_full(scorer: RewardScorer, query_id: str, reward: RewardParams) -> float:
    return compute_reward(KeepFull(), scorer.get_baseline(query_id).outcome, None, reward).total


def _score_boxes(
    scorer: RewardScorer, query_ids: Sequence[str], boxes: Sequence[Sequence[Box]], reward: RewardParams
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
