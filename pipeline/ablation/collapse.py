"""A policy that says FULL to everything: the start from which stock GRPO has nothing to compare.

The output embedding of FULL's first token is moved towards the mean hidden state from which openings are predicted,
as far as it takes until the SFT policy all but never opens a region. Nothing else changes: the policy has forgotten
when to crop, not where. (Other starts were tried first, docs/log.md: training towards FULL spoils the boxes or the
features.) An adapter must be merged before the result is saved, since its base changes.

Shapes: B queries, H hidden units, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np
import torch

from pipeline.errors import StageError
from pipeline.policy.policy import Policy
from pipeline.reranking.scorer import FrozenScorer

logger = logging.getLogger(__name__)

MAX_P_REGION: Final = 0.005
"""Mean p(REGION) on validation queries below which a policy counts as collapsed."""

MAX_SHIFT: Final = 40
"""Most that the logit of FULL is raised by, in steps of 1."""

NUM_CHECKED: Final = 64


def collapse_policy(policy: Policy, scorer: FrozenScorer) -> float:
    """Make the policy say FULL, in place, and return the mean p(REGION) over some validation queries, 0 to 1.

    Args:
        policy: the SFT policy.
        scorer: gives queries and pictures; nothing is scored.

    Raises:
        StageError: there are no validation queries, or no shift is enough.
    """
    checked = [query for query in scorer.queries.values() if query.split == "val"][:NUM_CHECKED]
    if not checked:
        raise StageError("there is no query with split `val` to see whether the policy has collapsed")
    images, questions = [scorer.load_image(query.query_id) for query in checked], [query.question for query in checked]
    head = policy.model.get_output_embeddings()
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        seen.append(arguments[0][:, -1].detach())

    with head.register_forward_pre_hook(keep):
        policy.decide(images, questions)
    mean_H = seen[0].mean(dim=0)  # the first pass of the first batch: the states that openings are predicted from
    step_H = (mean_H / mean_H.square().sum()).to(head.weight.dtype)
    for shift in range(1, MAX_SHIFT + 1):
        with torch.no_grad():
            head.weight[policy.full_ids[0]] += step_H
        p_region = float(np.mean([answer.p_region for answer in policy.decide(images, questions)]))
        if p_region < MAX_P_REGION:
            logger.info("collapse: mean p(REGION) is %.2g after the logit of FULL was raised by %d", p_region, shift)
            return p_region
    raise StageError(f"the policy still opens a region with p = {p_region:.2g} after a shift of {MAX_SHIFT}")
