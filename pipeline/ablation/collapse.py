"""A policy that says FULL to everything: the start from which stock GRPO has nothing to compare.

The SFT policy is taught FULL for training queries, by the trainer of the warm-up, until it all but never opens a
region on validation queries. Equal seeds give equal policies, so the arms that start from it share their start.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.learn.policy import Policy
from pipeline.learn.scorer import FrozenScorer
from pipeline.learn.seeding import seed_everything
from pipeline.learn.sft import SftExample, train_sft
from pipeline.tracking import null_run
from pipeline.types import RegionLabel

logger = logging.getLogger(__name__)

MAX_P_REGION = 0.001
"""Mean p(REGION) on validation queries below which a policy counts as collapsed."""

MAX_ROUNDS = 30
RATE_FACTOR = 3.0
"""The warm-up's rate times this: at its own, the last queries that open a region hold out for dozens of rounds."""

NUM_CHECKED = 64


def collapse_policy(policy: Policy, scorer: FrozenScorer, params: Params) -> float:
    """Teach the policy FULL, in place, and return the mean p(REGION) that is left.

    Args:
        policy: the SFT policy.
        scorer: gives queries and pictures; nothing is scored.
        params: rate, batch and number of queries of the warm-up; the seed.

    Raises:
        StageError: there are no validation queries, or p(REGION) is not small enough after all rounds.
    """
    seed_everything(params.seed)
    ids = sorted(query_id for query_id, pool in scorer.pools.items() if pool.split == "train")
    order = np.random.default_rng(params.seed).permutation(len(ids))[: params.warmup.num_queries]
    examples = [
        SftExample(RegionLabel(query_id=ids[i], box=None, gain=0.0), scorer.queries[ids[i]].question) for i in order
    ]
    rate = RATE_FACTOR * params.warmup.learning_rate
    one_round = params.warmup.model_copy(update={"epochs": 1.0, "warmup_steps": 0, "learning_rate": rate})
    for number in range(MAX_ROUNDS):
        with tempfile.TemporaryDirectory() as scratch:
            train_sft(
                policy,
                examples,
                scorer.load_image,
                one_round,
                seed=params.seed + number,
                log=null_run().log_metrics,
                scratch_dir=Path(scratch),
            )
        p_region = measure_p_region(policy, scorer)
        logger.info("collapse: mean p(REGION) is %.2g after round %d", p_region, number + 1)
        if p_region < MAX_P_REGION:
            return p_region
    raise StageError(f"the policy still opens a region with p = {p_region:.2g} after {MAX_ROUNDS} rounds of FULL")


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
