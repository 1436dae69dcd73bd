"""A world and parameters so small that whole stages run on them in seconds; smoke tests share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from demo.drawing.materialise import materialise
from demo.drawing.world import build_world
from pipeline.config import Params

NUM_TEST: Final = 12
_SECTIONS: Final[dict[str, dict[str, Any]]] = {
    "scorer": {"device": "cpu"},
    "retrieve": {"pool_size": 6},
    "policy": {"max_new_tokens": 8, "device": "cpu"},
    "search": {"scales": [0.5], "stride": 0.5, "min_gain": 0.0},
    # A random policy names no region, so there is nothing near what it says.
    "warmup": {"num_queries": 8, "labels": "region_search", "epochs": 4, "learning_rate": 3e-3, "batch_size": 4},
    "train": {
        "max_steps": 2,
        "queries_per_step": 2,
        "group_size": 4,
        "num_region": 1,
        "num_full": 1,
        "warmup_steps": 0,
        "save_steps": 1,
    },
    "evaluate": {"num_resamples": 100},
    "batches": {"policy": 8, "scorer": 64},
}


def write_small_run(root: Path, scorer_dir: Path, policy_dir: Path, **changes: dict[str, Any]) -> Params:
    """Draw data/, write params.yaml with every section in it, and return the parameters.

    Args:
        root: the checkout.
        scorer_dir: the scorer's folder.
        policy_dir: the base policy's folder.
        changes: section -> what differs in it.
    """
    materialise(build_world(seed=5, num_entities=24, num_train=24, num_val=8, num_test=NUM_TEST), root / "data")
    paths = {"scorer": {"path": str(scorer_dir)}, "policy": {"path": str(policy_dir)}}
    names = _SECTIONS.keys() | changes.keys()
    sections = {name: _SECTIONS.get(name, {}) | paths.get(name, {}) | changes.get(name, {}) for name in names}
    params = Params.model_validate({"seed": 3, **sections})
    content = yaml.safe_dump(params.model_dump(mode="json", by_alias=True))
    (root / "params.yaml").write_text(content, encoding="utf-8")
    return params
