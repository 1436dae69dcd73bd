"""The reward of a view's own search against that of its rank in the pool, on the same completions of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from benchmarks.rewards.completions import take_queries
from benchmarks.rewards.reward import check_agreement, score_ours, score_with
from benchmarks.rewards.setting import Completions, Setting
from benchmarks.timing import Cost, Spread, compute_ratios, compute_spread, do_in_turn
from pipeline.core.reward import compute_reward
from pipeline.files.images import crop_view
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.types import Crop, Decision, Malformed, Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFigures:
    """What the rewards of a step cost on an index of one size; wall clock, but for what says cpu.

    Attributes:
        num_documents: in the index.
        num_completions: of a step, scored at once.
        over_pool: time of rewards by search over that of rewards on the pool, caches empty.
        over_pool_cpu: the same in CPU time.
        pool_s: seconds of a step's rewards on the pool.
        search_s: by search.
        largest_difference: between a naive reward by search and ours.
    """

    num_documents: int
    num_completions: int
    over_pool: Spread
    over_pool_cpu: Spread
    pool_s: Spread
    search_s: Spread
    largest_difference: float


def measure_search_reward(
    setting: Setting, policy: Policy, completions: Completions, *, queries_per_step: int, num_turns: int
) -> SearchFigures:
    """Return the figures, step by step in turn; the naive way scores the first step.

    Args:
        setting: encoder, index, pools and pictures.
        policy: gives the reward its frame.
        completions: whole groups, of at least a step's queries.
        queries_per_step: groups that a training step scores together.
        num_turns: of either way.

    Raises:
        DisagreementError: a naive reward differs from ours by more than the tolerance.
    """
    query_ids = list(dict.fromkeys(completions.query_ids))
    num_steps = len(query_ids) // queries_per_step
    steps = [
        take_queries(completions, query_ids[step * queries_per_step : (step + 1) * queries_per_step])
        for step in range(num_steps)
    ]
    largest = check_agreement(_score_naively(setting, steps[0]), _score_by_search(setting, policy, steps[0])[1])
    costs: list[tuple[Cost, Cost]] = []
    with track(f"bench: reward by search, {len(setting.index)} documents", num_turns) as advance:
        for turn in range(num_turns):
            step = steps[turn % num_steps]
            (search, _), pool = do_in_turn(
                partial(_score_by_search, setting, policy, step), partial(score_ours, setting, policy, step), turn
            )
            costs.append((search, pool.cost))
            advance(1)
    over_pool, over_pool_cpu = compute_ratios(costs)
    return SearchFigures(
        num_documents=len(setting.index),
        num_completions=len(steps[0]),
        over_pool=over_pool,
        over_pool_cpu=over_pool_cpu,
        pool_s=compute_spread([pool.wall_s for _, pool in costs]),
        search_s=compute_spread([search.wall_s for search, _ in costs]),
        largest_difference=largest,
    )


def _score_by_search(setting: Setting, policy: Policy, completions: Completions) -> tuple[Cost, Sequence[float]]:
    scored = score_with(setting.open_search_scorer(), setting, policy, completions)
    return scored.cost, scored.rewards


def _score_naively(setting: Setting, completions: Completions) -> list[float]:
    """Return the rewards one by one: full image and crop are embedded, and every document ranked, for each again."""
    return [
        _score_one(setting, query_id, decision)
        for query_id, decision in zip(completions.query_ids, completions.decisions, strict=True)
    ]


def _score_one(setting: Setting, query_id: str, decision: Decision) -> float:
    params = setting.params.reward
    if isinstance(decision, Malformed):
        return params.malformed
    image = setting.pictures.load(setting.queries[query_id].image_path)
    full = _rank_all(setting, query_id, image)
    view = _rank_all(setting, query_id, crop_view(image, decision.box)) if isinstance(decision, Crop) else None
    return compute_reward(decision, full, view, params).total


def _rank_all(setting: Setting, query_id: str, view: Image.Image) -> Outcome:
    """Return what a ranking of every document says, down to the depth."""
    answers, depth = setting.relevant[query_id], setting.params.reward.depth
    scores_M = setting.index.vectors_ND.astype(np.float64) @ setting.encoder.encode_images([view])[0]
    is_answer_M = np.isin(setting.index.doc_ids, list(answers))
    order_M = np.lexsort((~is_answer_M, -scores_M))
    ranks = [int(place) + 1 for place in np.flatnonzero(is_answer_M[order_M])]
    gains = [1.0 / math.log2(1 + rank) for rank in ranks if rank <= depth]
    ideal = [1.0 / math.log2(1 + rank) for rank in range(1, min(len(ranks), depth) + 1)]
    return Outcome(
        first_rank=min(ranks[0], depth + 1),
        reciprocal_rank=1.0 / ranks[0] if ranks[0] <= depth else 0.0,
        ndcg=sum(gains) / sum(ideal),
        margin=float(scores_M[is_answer_M].mean() - scores_M[~is_answer_M].max()),
    )
