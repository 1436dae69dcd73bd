"""Warm-up: region search finds the planted box, no human box is read, the policy comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Params, RewardParams, SearchParams
from pipeline.core.boxes import compute_iou
from pipeline.core.region_search import build_grid
from pipeline.errors import StageError
from pipeline.learn.policy import load_policy
from pipeline.learn.scorer import FrozenScorer
from pipeline.stages import warmup
from pipeline.store import load_labels
from pipeline.tracking import null_run
from pipeline.types import Box, Outcome
from pipeline.workspace import Workspace
from tests.tiny_models import PlantedScorer, build_outcome

_SEARCH = SearchParams(scales=(0.4,), stride=0.5, min_gain=0.05)
_QUESTIONS = {f"train{number}": f"What is thing {number}?" for number in range(5)} | {"val0": "What is it?"}
_GRID = build_grid(_SEARCH.scales, _SEARCH.stride)
_PLANTED = {query_id: _GRID[5 * number % len(_GRID)] for number, query_id in enumerate(_QUESTIONS)}


class _Poisoned:
    """A query whose human box must not be looked at."""

    def __init__(self, query: Any) -> None:
        self._query = query

    def __getattr__(self, name: str) -> Any:
        if name == "target_box":
            raise AssertionError("target_box was read in training")
        return getattr(self._query, name)


def _build_scorer(*, top_margin: float = 1.0) -> PlantedScorer:
    def score_box(query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=top_margin * compute_iou(box, _PLANTED[query_id]))

    scorer = PlantedScorer(_QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    scorer.queries = {query_id: _Poisoned(query) for query_id, query in scorer.queries.items()}  # type: ignore[misc]
    return scorer


def test_search_finds_the_planted_box() -> None:
    done: list[int] = []
    query_ids = list(_QUESTIONS)
    scorer: Any = _build_scorer()
    labels = warmup.search_labels(scorer, query_ids, _SEARCH, RewardParams(), done.append, chunk_size=4)
    assert [label.query_id for label in labels] == query_ids
    assert done == [4, 2]
    for label in labels:
        assert label.box == _PLANTED[label.query_id]
        assert label.gain == pytest.approx(RewardParams().scale * RewardParams().weight_margin)


def test_second_pass_goes_beyond_the_grid() -> None:
    between = Box(0.35, 0.3, 0.75, 0.7)
    assert between not in _GRID

    def score_box(_query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=compute_iou(box, between))

    scorer: Any = PlantedScorer(_QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    label = warmup.search_labels(scorer, ["train0"], _SEARCH, RewardParams(), lambda _: None)[0]
    assert label.box is not None
    assert compute_iou(label.box, between) > max(compute_iou(box, between) for box in _GRID)


def test_small_gain_keeps_the_full_image() -> None:
    scorer: Any = _build_scorer(top_margin=0.02)
    labels = warmup.search_labels(scorer, list(_QUESTIONS), _SEARCH, RewardParams(), lambda _: None)
    assert all(label.box is None for label in labels)
    assert all(0.0 < label.gain < _SEARCH.min_gain for label in labels)
    eager = _SEARCH.model_copy(update={"min_gain": 0.01})
    labels = warmup.search_labels(scorer, list(_QUESTIONS), eager, RewardParams(), lambda _: None)
    assert all(label.box is not None for label in labels)


def test_only_training_queries_are_drawn() -> None:
    scorer: Any = _build_scorer()
    drawn = warmup.sample_queries(scorer, 100, seed=1)
    assert sorted(drawn) == [query_id for query_id in _QUESTIONS if query_id.startswith("train")]
    assert warmup.sample_queries(scorer, 2, seed=1) == drawn[:2]
    scorer.pools = {}
    with pytest.raises(StageError, match="no training query"):
        warmup.sample_queries(scorer, 2, seed=1)


def test_stage_writes_labels_and_policy_without_human_boxes(
    tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrozenScorer, "load", lambda *_: _build_scorer())
    workspace = Workspace.at(tmp_path)
    params = Params.model_validate(
        {
            "policy": {"path": str(tiny_llava_dir), "device": "cpu", "max_new_tokens": 8},
            "search": _SEARCH.model_dump(),
            "warmup": {"num_queries": 4, "epochs": 1, "batch_size": 2},
        }
    )
    figures = warmup.run(params, workspace, null_run())
    labels = load_labels(workspace.labels_dir / "labels.parquet")
    assert len(labels) == figures["num_labels"] == 4
    assert figures["label_region_rate"] == 1.0
    assert 0.0 <= figures["sft_format_rate"] <= 1.0
    load_policy(workspace.sft_dir, params.policy)
