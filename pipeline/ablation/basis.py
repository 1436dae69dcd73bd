"""What the arms and their summary must agree on: figures, names of rows, and the hash of all that the arms share."""

from __future__ import annotations

import hashlib
import json

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.query_set import hash_pools, load_query_set
from pipeline.files.store import read_json
from pipeline.models.model_folder import compute_model_digest
from pipeline.workspace import Workspace

METRICS = ("cond_recall_at_1", "mrr", "recall_at_1", "rc_rate", "harm_rate", "malformed_rate")
SECTIONS = ("ablation", "data", "policy", "reward", "scorer", "seed", "threads", "train")
"""Sections of params.yaml that an arm depends on; ablation/dvc.yaml names the same."""


def compute_basis(params: Params, workspace: Workspace) -> str:
    """Return the hash of all that the arms share; results of another basis cannot stand in one table.

    Raises:
        StageError: an earlier stage has not run.
    """
    if not workspace.sft_dir.is_dir():
        raise StageError(f"{workspace.sft_dir} is missing; run warmup first")
    tree = params.model_dump(mode="json", by_alias=True)
    content = [
        {name: tree[name] for name in SECTIONS},
        compute_model_digest(workspace.sft_dir),
        hash_pools(load_query_set(workspace, "test").pools),
        read_json(workspace.pools_dir / "meta.json", stage="retrieve"),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def name_method(seed: int) -> str:
    """Return the method's name of a seed's rows in results.parquet; the full image's are called `full`."""
    return f"seed-{seed}"
