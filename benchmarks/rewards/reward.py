"""The reward against the naive way and against the bare floor, on the same completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.rewards.completions import take_queries
from benchmarks.rewards.floor import PixelBox, cut_crops, embed_crops, list_distinct_crops
from benchmarks.rewards.naive_reward import NaiveReward
from benchmarks.rewards.setting import Completions, Setting
from benchmarks.timing import Cost, Spread, compute_ratios, compute_spread, do_in_turn, measure
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.training.grpo.reward import PolicyReward
from pipeline.training.scorers import RewardScorer

TOLERANCE: Final = 1e-4
"""Largest difference between two rewards of one completion, which batches of other sizes round otherwise."""


class DisagreementError(Exception):
    """The naive way and ours give one completion different rewards, so their times cannot be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardFigures:
    """What one batch of completions costs; wall clock, but for those that say cpu.

    Attributes:
        num_completions: scored at once by ours.
        num_distinct_crops: embedded by ours and by the floor.
        naive_per_s: rewards per second of the naive way.
        ours_per_s: of ours, with an empty cache.
        warm_per_s: of ours, when every crop has been seen before.
        speedup: time of the naive way over ours, per completion.
        floor_ratio: time of ours over that of the floor.
        embedding_ratio: time of ours over the model alone, crops cut beforehand; no goal.
        largest_difference: between a naive reward and ours.
    """

    num_completions: int
    num_distinct_crops: int
    naive_per_s: Spread
    ours_per_s: Spread
    warm_per_s: Spread
    speedup: Spread
    speedup_cpu: Spread
    floor_ratio: Spread
    floor_ratio_cpu: Spread
    embedding_ratio: Spread
    largest_difference: float


def measure_reward(
    setting: Setting, policy: Policy, completions: Completions, *, queries_per_turn: int, num_turns: int
) -> RewardFigures:
    """Return the figures; the naive way takes a few whole groups a turn until all have been scored.

    Args:
        setting: encoder, pools and pictures.
        policy: gives the reward its frame.
        completions: whole groups.
        queries_per_turn: groups that the naive way scores between two turns of ours.
        num_turns: of ours and the floor.

    Raises:
        DisagreementError: a naive reward differs from ours by more than the tolerance.
    """
    crops = list_distinct_crops(setting, completions)
    naive, largest = _compare_with_naive(setting, policy, completions, queries_per_turn)
    floor: list[tuple[Cost, Cost]] = []
    embedding: list[tuple[Cost, Cost]] = []
    warm: list[Cost] = []
    with track("bench: reward, ours and floor in turn", num_turns) as advance:
        for turn in range(num_turns):
            ours, (floor_cost, _) = do_in_turn(
                lambda: score_ours(setting, policy, completions),
                lambda: measure(lambda: embed_crops(setting, crops)),
                turn,
            )
            floor.append((ours.cost, floor_cost))
            warm.append(ours.warm_cost)
            embedding.append((ours.cost, _measure_embedding(setting, crops)))
            advance(1)
    speedup, speedup_cpu = compute_ratios(naive)
    floor_ratio, floor_ratio_cpu = compute_ratios(floor)
    return RewardFigures(
        num_completions=len(completions),
        num_distinct_crops=sum(len(boxes) for boxes in crops.values()),
        naive_per_s=compute_spread([1.0 / cost.wall_s for cost, _ in naive]),
        ours_per_s=_compute_rate([cost for cost, _ in floor], completions),
        warm_per_s=_compute_rate(warm, completions),
        speedup=speedup,
        speedup_cpu=speedup_cpu,
        floor_ratio=floor_ratio,
        floor_ratio_cpu=floor_ratio_cpu,
        embedding_ratio=compute_ratios(embedding)[0],
        largest_difference=largest,
    )


@dataclass(frozen=True, slots=True)
class OurRewards:
    """What ours gives, and what it costs with an empty cache and with a full one."""

    rewards: Sequence[float]
    cost: Cost
    warm_cost: Cost


def score_ours(setting: Setting, policy: Policy, completions: Completions) -> OurRewards:
    """Score all completions on their pools with a scorer that has seen nothing, and at once again."""
    return score_with(setting.open_scorer(), setting, policy, completions)


def score_with(scorer: RewardScorer, setting: Setting, policy: Policy, completions: Completions) -> OurRewards:
    """Score all completions, and at once again."""
    reward = PolicyReward(scorer, policy, setting.params.reward)
    cost, rewards = measure(lambda: reward.score(completions.query_ids, completions.decisions))
    warm_cost, _ = measure(lambda: reward.score(completions.query_ids, completions.decisions))
    return OurRewards([reward.total for reward in rewards], cost, warm_cost)


def score_naively(setting: Setting, completions: Completions) -> list[float]:
    """Score all completions, one after another, the naive way."""
    naive = NaiveReward(setting.encoder, setting.documents, setting.pictures, setting.params.reward)
    return [
        naive.score(setting.queries[query_id], setting.pools[query_id], decision)
        for query_id, decision in zip(completions.query_ids, completions.decisions, strict=True)
    ]


def _compare_with_naive(
    setting: Setting, policy: Policy, completions: Completions, queries_per_turn: int
) -> tuple[list[tuple[Cost, Cost]], float]:
    """Return the costs of one completion, naive and ours, turn by turn, and the largest difference of rewards."""
    query_ids = list(dict.fromkeys(completions.query_ids))
    pairs: list[tuple[Cost, Cost]] = []
    naive_rewards: list[float] = []
    our_rewards: Sequence[float] = ()
    with track("bench: reward, naive and ours in turn", len(completions)) as advance:
        for turn, start in enumerate(range(0, len(query_ids), queries_per_turn)):
            part = take_queries(completions, query_ids[start : start + queries_per_turn])
            (naive_cost, rewards), ours = do_in_turn(
                partial(measure, partial(score_naively, setting, part)),
                partial(score_ours, setting, policy, completions),
                turn,
            )
            pairs.append((naive_cost.divide(len(part)), ours.cost.divide(len(completions))))
            naive_rewards += rewards
            our_rewards = ours.rewards
            advance(len(part))
    return pairs, check_agreement(naive_rewards, our_rewards)


def check_agreement(naive: Sequence[float], ours: Sequence[float]) -> float:
    """Return the largest difference between two rewards of one completion.

    Raises:
        DisagreementError: it exceeds the tolerance.
    """
    largest = max(abs(one - other) for one, other in zip(naive, ours, strict=True))
    if largest > TOLERANCE:
        raise DisagreementError(f"the naive reward of a completion differs from ours by {largest:.2g}")
    return largest


def _measure_embedding(setting: Setting, crops: Mapping[str, list[PixelBox]]) -> Cost:
    cuts = cut_crops(setting, crops)
    return measure(lambda: setting.encoder.encode_images(cuts))[0]


def _compute_rate(costs: Sequence[Cost], completions: Completions) -> Spread:
    return compute_spread([len(completions) / cost.wall_s for cost in costs])
