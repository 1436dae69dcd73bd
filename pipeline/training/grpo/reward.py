"""What sampled rows earn: their answers read, their crops ranked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline.config import RewardParams
from pipeline.core.completion import cut_after_action
from pipeline.core.reward import Reward, compute_reward
from pipeline.policy.decoding.openings import read_opening
from pipeline.policy.policy import Policy
from pipeline.training.grpo.completions import Completion
from pipeline.training.scorers import RewardScorer
from pipeline.types import Crop, Decision


class PolicyReward:
    """Scores a step's completions: every distinct crop is embedded once, all of them in full batches.

    Args:
        scorer: holds pools, baselines and every crop it has seen.
        policy: gives frames and tokenizer.
        params: weights of the reward.
    """

    def __init__(self, scorer: RewardScorer, policy: Policy, params: RewardParams) -> None:
        self._scorer = scorer
        self._policy = policy
        self._params = params

    def parse(self, query_id: str, completion_ids: Sequence[int]) -> tuple[str, Decision]:
        """Return a completion's text and the decision that it states about the query's picture."""
        query = self._scorer.queries[query_id]
        text = cut_after_action(self._policy.processor.tokenizer.decode(completion_ids, skip_special_tokens=True))
        return text, self._policy.read(text, query.width_px, query.height_px)

    def score(self, query_ids: Sequence[str], decisions: Sequence[Decision]) -> list[Reward]:
        """Return what each decision earns, on its query's pool or by its own search."""
        crops = [
            (query_id, decision.box)
            for query_id, decision in zip(query_ids, decisions, strict=True)
            if isinstance(decision, Crop)
        ]
        # In one call: a scorer that searches the index multiplies once.
        views = self._scorer.score_views([*((query_id, None) for query_id in query_ids), *crops])
        kept, cropped = views[: len(query_ids)], iter(views[len(query_ids) :])
        return [
            compute_reward(
                decision, full.outcome, next(cropped).outcome if isinstance(decision, Crop) else None, self._params
            )
            for full, decision in zip(kept, decisions, strict=True)
        ]

    def read_completions(self, query_ids: Sequence[str], completion_ids: Sequence[Sequence[int]]) -> list[Completion]:
        """Return what each row says and earns.

        Args:
            query_ids: what each row answers.
            completion_ids: the rows, without padding.
        """
        parsed = [self.parse(query_id, ids) for query_id, ids in zip(query_ids, completion_ids, strict=True)]
        rewards = self.score(query_ids, [decision for _, decision in parsed])
        tokenizer = self._policy.processor.tokenizer
        return [
            Completion(query_id, ids, text, *read_opening(tokenizer, ids), decision, reward)
            for query_id, ids, (text, decision), reward in zip(query_ids, completion_ids, parsed, rewards, strict=True)
        ]


def ranking_reward(
    sampled: Sequence[Completion], log_metric: Callable[[str, float], None], **columns: Any
) -> list[float]:
    """Return one reward per completion, as TRL asks for it.

    Args:
        sampled: the column that the trainer adds to its rows.
        log_metric: receives the mean of every part of the reward.
        columns: the others, and what else TRL hands on.
    """
    for part in ("mrr", "ndcg", "rank", "margin"):
        log_metric(f"reward/{part}", float(np.mean([getattr(row.reward, part) for row in sampled])))
    return [row.reward.total for row in sampled]
