"""Warm-up: only training queries are drawn, no human box is read, the policy comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Params
from pipeline.core.boxes import compute_iou
from pipeline.core.region_search import RESHAPINGS
from pipeline.errors import StageError
from pipeline.files.store import load_labels
from pipeline.policy.policy import load_policy
from pipeline.reranking.scorer import FrozenScorer
from pipeline.runs.tracking import null_run
from pipeline.stages import warmup
from pipeline.workspace import Workspace
from tests.conftest import TaughtLlava
from tests.fakes.planted import QUESTIONS, SEARCH, build_scorer


def test_only_training_queries_are_drawn() -> None:
    scorer: Any = build_scorer()
    drawn = warmup.sample_queries(scorer, 100, seed=1)
    assert sorted(drawn) == [query_id for query_id in QUESTIONS if query_id.startswith("train")]
    assert warmup.sample_queries(scorer, 2, seed=1) == drawn[:2]
    scorer.pools = {}
    with pytest.raises(StageError, match="no training query"):
        warmup.sample_queries(scorer, 2, seed=1)


def test_stage_writes_labels_and_policy_without_human_boxes(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrozenScorer, "load", lambda *_: build_scorer())
    monkeypatch.setattr(warmup, "load_asked", lambda *_: [])
    workspace = Workspace.at(tmp_path)
    params = Params.model_validate(
        {
            "policy": {"path": str(tiny_llava_dir), "device": "cpu", "max_new_tokens": 8},
            "search": SEARCH.model_dump(),
            "warmup": {"num_queries": 4, "labels": "region_search", "epochs": 1, "batch_size": 2},
        }
    )
    figures = warmup.run(params, workspace, null_run())
    labels = load_labels(workspace.labels_dir / "labels.parquet")
    assert len(labels) == figures["num_labels"] == 4
    assert figures["label_region_rate"] == 1.0
    assert 0.0 <= figures["sft_format_rate"] <= 1.0
    load_policy(workspace.sft_dir, params.policy)


def test_neighbourhoods_are_those_of_the_base_policy(
    spoken_llava: TaughtLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels follow from parameters alone, and lie near the one box that this policy knows."""
    monkeypatch.setattr(FrozenScorer, "load", lambda *_: build_scorer())
    monkeypatch.setattr(warmup, "load_asked", lambda *_: [])
    params = Params.model_validate(
        {
            "policy": {"path": str(spoken_llava.folder), "device": "cpu", "max_new_tokens": 12},
            "warmup": {"num_queries": 4, "num_samples": 2, "epochs": 3, "batch_size": 12},
        }
    )
    found = []
    for name in ("one", "two"):
        workspace = Workspace.at(tmp_path / name)
        figures = warmup.run(params, workspace, null_run())
        found.append(load_labels(workspace.labels_dir / "labels.parquet"))
        assert figures["num_labels"] == len(found[-1]) == 4
        assert figures["num_crops_scored"] <= 4 * (len(RESHAPINGS) + 3)
    assert found[0] == found[1]
    boxes = [label.box for label in found[0] if label.box is not None]
    known = next(label.box for label in spoken_llava.labels if label.box is not None)
    assert boxes
    assert max(compute_iou(box, known) for box in boxes) > 0.4
