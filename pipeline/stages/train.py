"""Stage train: r-GRPO on the training pools, from the SFT policy and with the KL to it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.files.store import replace_dir, save_curves, save_rollouts, writing
from pipeline.models.model_folder import check_base, compute_model_digest, note_base
from pipeline.policy.families import check_pictures, load_frames
from pipeline.policy.policy import load_policy
from pipeline.runs.tracking import StageRun
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.scorers import load_asked, load_reward_scorer
from pipeline.training.seeding import seed_everything
from pipeline.types import Rollout
from pipeline.workspace import Workspace

_SECTIONS: Final = {"seed", "threads", "scorer", "policy", "reward", "train"}
_CODE: Final = ("core", "models", "retrieval", "reranking", "policy", "training")
_PACKAGE_DIR: Final = Path(__file__).resolve().parents[1]


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Write `policy_dir` (the trained policy), `rollouts_dir` (every completion and its reward) and the curve.

    A run that was cut off goes on from its last whole checkpoint, if parameters, tables, pools, SFT policy and code are
    the same as then.

    Raises:
        StageError: an earlier stage has not run, or there are fewer training queries than a step takes.
        ModelError: scorer or SFT policy cannot be loaded, or the policy cannot read some query's picture.
    """
    seed_everything(params.seed)
    if not workspace.sft_dir.is_dir():
        raise StageError(f"{workspace.sft_dir} is missing; run warmup first")
    base_digest = check_base(params.policy.path, (workspace.sft_dir,))
    check_pictures(load_frames(params.policy.path), load_asked(params, workspace))
    policy = load_policy(workspace.sft_dir, params.policy)
    scorer = load_reward_scorer(params, workspace)
    questions = {query_id: scorer.queries[query_id].question for query_id in scorer.teaching_ids}
    if len(questions) < params.train.queries_per_step:
        raise StageError(
            f"{len(questions)} training queries have a relevant document to rank, train.queries_per_step is "
            f"{params.train.queries_per_step}; look at retrieve's recall, or lower it"
        )
    checkpoints_dir = workspace.checkpoints_dir / "train" / _name_run(params, workspace)
    with writing(checkpoints_dir):
        record = train_rgrpo(
            policy,
            questions,
            scorer,
            params.train,
            params.reward,
            seed=params.seed,
            log=run.log_metrics,
            checkpoints_dir=checkpoints_dir,
        )
    with replace_dir(workspace.policy_dir) as folder:
        policy.save(folder)
        note_base(folder, base_digest)
    with replace_dir(workspace.rollouts_dir) as folder:
        save_rollouts(folder / "rollouts.parquet", record.rollouts)
    save_curves(workspace.curve_path("train"), record.curve)
    # A resumed run scores fewer crops, and each step takes its own time: figures of this run, not of its inputs.
    run.note({"num_crops_scored": scorer.num_encoded, "step_seconds": record.step_seconds})
    shutil.rmtree(checkpoints_dir.parent, ignore_errors=True)
    return {
        "num_train_queries": len(questions),
        "num_rollouts": len(record.rollouts),
        **_summarise(record.rollouts),
    }


def _name_run(params: Params, workspace: Workspace) -> str:
    """Return a name that changes with anything that a checkpoint depends on: parameters, inputs and code."""
    digest = hashlib.sha256(json.dumps(params.model_dump(mode="json", include=_SECTIONS), sort_keys=True).encode())
    digest.update(compute_model_digest(workspace.sft_dir).encode())
    folders = (workspace.pools_dir, workspace.tables_dir)
    inputs = sorted(entry for folder in folders for entry in folder.iterdir() if entry.is_file())
    code = sorted(file for package in _CODE for file in (_PACKAGE_DIR / package).rglob("*.py"))
    for file in (*inputs, *code):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _summarise(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Return the mean reward of the first and of the last tenth of the steps."""
    if not rollouts:
        return {}
    steps = sorted({rollout.step for rollout in rollouts})
    tenth = max(1, len(steps) // 10)
    first, last = set(steps[:tenth]), set(steps[-tenth:])
    return {
        "reward_first_tenth": float(np.mean([r.reward for r in rollouts if r.step in first])),
        "reward_last_tenth": float(np.mean([r.reward for r in rollouts if r.step in last])),
    }
