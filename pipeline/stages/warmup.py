"""Stage warmup: the frozen scorer labels training queries, SFT teaches the policy to say the labels.

No human boxes are used: a query's target box is never read here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.files.store import replace_dir, save_curves, save_labels, writing
from pipeline.models.model_folder import note_base
from pipeline.policy.families import check_pictures, load_frames
from pipeline.policy.policy import Policy, load_policy
from pipeline.policy.view_shape import AS_NAMED
from pipeline.process.progress import track
from pipeline.runs.tracking import StageRun
from pipeline.training.labelling import label_neighbourhoods, search_labels
from pipeline.training.scorers import RewardScorer, load_asked, load_reward_scorer
from pipeline.training.seeding import seed_everything
from pipeline.training.sft import SftExample, train_sft
from pipeline.types import Malformed, RegionLabel
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

_NUM_CHECKED = 200
"""Val queries that the warmed-up policy answers once, to see whether it keeps to the format."""


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `labels_dir` (labels.parquet), `sft_dir` (the policy after SFT) and SFT's curve.

    Raises:
        StageError: an earlier stage has not run, or there are no training pools.
        ModelError: scorer or base policy cannot be loaded, or the policy cannot read some query's picture.
    """
    # What answer could not ask about is told before the hours of training, not after.
    check_pictures(load_frames(params.policy.path), load_asked(params, workspace))
    seed_everything(params.seed)
    policy = load_policy(params.policy.path, params.policy, params.batches.policy)
    scorer = load_reward_scorer(params, workspace)
    query_ids = sample_queries(scorer, params.warmup.num_queries, params.seed)
    labels, figures = _label(policy, scorer, query_ids, params)
    with replace_dir(workspace.labels_dir) as folder:
        save_labels(folder / "labels.parquet", labels)
    examples = [SftExample(label, scorer.queries[label.query_id].question) for label in labels]
    with tempfile.TemporaryDirectory() as scratch, writing(Path(scratch)):
        curve = train_sft(
            policy,
            examples,
            scorer.load_image,
            params.warmup,
            seed=params.seed,
            log=run.log_metrics,
            scratch_dir=Path(scratch),
        )
    with replace_dir(workspace.sft_dir) as folder:
        policy.save(folder)
        note_base(folder, policy.base_digest)
    save_curves(workspace.curve_path("warmup"), curve)
    losses = [point.value for point in curve if point.metric == "sft_loss"]
    crops = [label for label in labels if label.box is not None]
    return {
        "num_labels": len(labels),
        **figures,
        "label_region_rate": len(crops) / len(labels),
        "label_mean_gain": float(np.mean([label.gain for label in crops])) if crops else 0.0,
        "num_crops_scored": scorer.num_encoded,
        "sft_final_loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
        **_measure_format(policy, scorer),
    }


def sample_queries(scorer: RewardScorer, num_queries: int, seed: int) -> list[str]:
    """Return ids of training queries that have something to rank, drawn without replacement.

    Raises:
        StageError: there are none.
    """
    candidates = scorer.teaching_ids
    if not candidates:
        raise StageError("no training query has a relevant document to rank; look at retrieve's recall")
    order = np.random.default_rng(seed).permutation(len(candidates))[:num_queries]
    return [candidates[index] for index in order]


def _label(
    policy: Policy, scorer: RewardScorer, query_ids: Sequence[str], params: Params
) -> tuple[list[RegionLabel], dict[str, float]]:
    """Return a label for each query, and figures of how they were made; the policy crops from now on as they mean."""
    # A base that was trained here before brings a shape, in which its boxes would be grown twice.
    policy.view_shape = AS_NAMED
    with track("warmup: queries labelled", len(query_ids)) as advance:
        if params.warmup.labels == "region_search":
            return search_labels(scorer, query_ids, params.search, params.reward, advance), {}
        labels, reshaping = label_neighbourhoods(
            policy, scorer, query_ids, params.warmup, params.reward, params.seed, advance
        )
        policy.view_shape = reshaping
        return labels, {"label_margin": reshaping.margin, "label_is_square": float(reshaping.is_square)}


def _measure_format(policy: Policy, scorer: RewardScorer) -> dict[str, float]:
    """Return the share of well-formed answers to some val queries, or nothing where there are none."""
    checked = [query for query in scorer.queries.values() if query.split == "val"][:_NUM_CHECKED]
    num_malformed = 0
    for start in range(0, len(checked), policy.batch_size):  # so that few pictures are in memory at once
        batch = checked[start : start + policy.batch_size]
        images = [scorer.load_image(query.query_id) for query in batch]
        answers = policy.decide(images, [query.question for query in batch])
        num_malformed += sum(isinstance(answer.decision, Malformed) for answer in answers)
    return {"sft_format_rate": 1.0 - num_malformed / len(checked)} if checked else {}
