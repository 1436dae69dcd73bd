"""A policy that says FULL to everything: the start from which stock GRPO has nothing to compare.

The SFT policy is trained by r-GRPO with a reward that pays FULL alone, until it all but never opens a region on
validation queries. Every box earns the same there, so with factorised advantages nothing teaches against boxes: the
policy forgets when to crop, not where. (Teaching FULL by SFT was tried first; it spoils the boxes too, docs/log.md.)
Equal seeds give equal policies, so the arms that start from it share their start.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.config import Params, RewardParams
from pipeline.errors import StageError
from pipeline.learn.grpo import train_rgrpo
from pipeline.learn.policy import Policy
from pipeline.learn.scorer import FrozenScorer
from pipeline.learn.seeding import seed_everything
from pipeline.tracking import null_run

logger = logging.getLogger(__name__)

MAX_P_REGION: Final = 0.001
"""Mean p(REGION) on validation queries below which a policy counts as collapsed."""

MAX_ROUNDS: Final = 20
STEPS_PER_ROUND: Final = 10
NUM_CHECKED: Final = 64
ONLY_FULL_PAYS: Final = RewardParams(
    weight_mrr=0.0, weight_ndcg=0.0, weight_rank=0.0, weight_margin=0.0, full_when_first=1.0, full_otherwise=1.0
)


def collapse_policy(policy: Policy, questions: Mapping[str, str], scorer: FrozenScorer, params: Params) -> float:
    """Drive the policy to FULL, in place, and return the mean p(REGION) that is left.

    Args:
        policy: the SFT policy.
        questions: query id -> question of the training queries.
        scorer: gives queries and pictures.
        params: groups, rate and seed of r-GRPO.

    Raises:
        StageError: there are no validation queries, or p(REGION) is not small enough after all rounds.
    """
    seed_everything(params.seed)
    changes = {"max_steps": STEPS_PER_ROUND, "save_steps": STEPS_PER_ROUND, "warmup_steps": 0, "beta": 0.0}
    one_round = params.train.model_copy(update=changes)
    for number in range(MAX_ROUNDS):
        with tempfile.TemporaryDirectory() as scratch:
            train_rgrpo(
                policy,
                questions,
                scorer,
                one_round,
                ONLY_FULL_PAYS,
                seed=params.seed + number,
                log=null_run().log_metrics,
                checkpoints_dir=Path(scratch),
            )
        p_region = measure_p_region(policy, scorer)
        logger.info("collapse: mean p(REGION) is %.2g after round %d", p_region, number + 1)
        if p_region < MAX_P_REGION:
            return p_region
    raise StageError(f"the policy still opens a region with p = {p_region:.2g} after {MAX_ROUNDS} rounds")


def measure_p_region(policy: Policy, scorer: FrozenScorer) -> float:
    """Return the mean p(REGION) over some validation queries, 0 to 1.

    Raises:
        StageError: there are none.
    """
    checked = [query for query in scorer.queries.values() if query.split == "val"][:NUM_CHECKED]
    if not checked:
        raise StageError("there is no query with split `val` to see whether the policy has collapsed")
    images = [scorer.load_image(query.query_id) for query in checked]
    answers = policy.decide(images, [query.question for query in checked])
    return float(np.mean([answer.p_region for answer in answers]))
