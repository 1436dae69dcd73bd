"""Completions to be scored: what the demo's policy says when its rows are forced and left free as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch

from benchmarks.rewards.setting import Completions, Setting
from pipeline.config import Params, TrainParams
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, parse_completion
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.policy import Policy
from pipeline.reranking.scorer import FrozenScorer
from pipeline.training.seeding import seed_everything
from pipeline.types import Decision

_OPENINGS: Final = (REGION_OPENING, FULL_ANSWER, REGION_OPENING, "")
"""Rows of a group open so, over and over: half REGION, a quarter FULL, a quarter free, as in params.yaml."""


def sample_completions(
    setting: Setting, policy: Policy, query_ids: Sequence[str], group_size: int, seed: int
) -> Completions:
    """Return one group of sampled decisions per query, groups one after another."""
    seed_everything(seed)
    scorer = setting.open_scorer()
    rows_GQ = [
        _sample_row(setting, policy, scorer, query_ids, _OPENINGS[row % len(_OPENINGS)]) for row in range(group_size)
    ]
    return Completions(
        query_ids=tuple(query_id for query_id in query_ids for _ in range(group_size)),
        decisions=tuple(row_Q[number] for number in range(len(query_ids)) for row_Q in rows_GQ),
    )


def resize_groups(params: Params, group_size: int) -> TrainParams:
    """Return the training's parameters with groups of this size, forced rows in proportion but no arm without any."""
    train = params.train
    share = group_size / train.group_size
    num_full = max(round(train.num_full * share), min(train.num_full, 1))
    num_region = max(round(train.num_region * share), min(train.num_region, 1))
    arms = {"num_region": min(num_region, group_size - num_full), "num_full": num_full}
    return TrainParams.model_validate(train.model_dump() | arms | {"group_size": group_size})


def take_rows(completions: Completions, old_size: int, new_size: int) -> Completions:
    """Return the first rows of every group."""
    kept = [row for row in range(len(completions)) if row % old_size < new_size]
    return Completions(
        query_ids=tuple(completions.query_ids[row] for row in kept),
        decisions=tuple(completions.decisions[row] for row in kept),
    )


def take_queries(completions: Completions, query_ids: Sequence[str]) -> Completions:
    """Return the groups of these queries."""
    wanted = frozenset(query_ids)
    kept = [row for row, query_id in enumerate(completions.query_ids) if query_id in wanted]
    return Completions(
        query_ids=tuple(completions.query_ids[row] for row in kept),
        decisions=tuple(completions.decisions[row] for row in kept),
    )


def give_to(completions: Completions, query_ids: Sequence[str]) -> Completions:
    """Return the same decisions as if other queries had earned them, group by group."""
    names = dict(zip(dict.fromkeys(completions.query_ids), query_ids, strict=True))
    return replace(completions, query_ids=tuple(names[query_id] for query_id in completions.query_ids))


@torch.inference_mode()
def _sample_row(
    setting: Setting, policy: Policy, scorer: FrozenScorer, query_ids: Sequence[str], opening: str
) -> list[Decision]:
    """Return one sampled decision per query, all opened alike."""
    processor = policy.processor
    prompts = [policy.conversation.write_prompt(setting.queries[query_id].question) + opening for query_id in query_ids]
    images = [[scorer.load_image(query_id)] for query_id in query_ids]
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt").to(policy.model.device)
    policy.model.eval()
    sequences = policy.model.generate(
        **inputs,
        generation_config=GenerationSettings.sampling(
            policy.params.max_new_tokens, setting.params.train.temperature, policy.tokens
        ).build_config(),
    )
    generated = processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    queries = [setting.queries[query_id] for query_id in query_ids]
    return [
        parse_completion(opening + text, policy.get_frame(query.width_px, query.height_px))
        for text, query in zip(generated, queries, strict=True)
    ]
