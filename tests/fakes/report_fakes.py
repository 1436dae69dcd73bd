"""Small records for the report's charts and page: every section has something to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.files.store import load_results, read_json, save_results, write_json
from pipeline.report import table
from pipeline.types import Box, CurvePoint, Query, QueryResult, Rollout
from pipeline.workspace import Workspace
from tests.fakes.evaluation_fakes import PARAMS

NUM_STEPS = 6
BUCKETS = ("1", "2-3", "4-10", "11+", "none")
NOT_SEARCHED = PARAMS.model_copy(update={"retrieve": PARAMS.retrieve.model_copy(update={"search_again": "off"})})
SEARCH_DEPTH = 20


def build_interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1)}


def build_query(query_id: str) -> Query:
    return Query(query_id=query_id, split="test", question="?", image_path="x", width_px=4, height_px=3)


def build_row(query_id: str, method: str, rank: int | None, decision: Any) -> QueryResult:
    """Return a row that tells nothing but where the first relevant document stands."""
    return QueryResult(
        query_id=query_id,
        method=method,
        decision=decision,
        box=None,
        doc_ids=(),
        scores=(),
        first_rank=rank,
        reciprocal_rank=0.0 if rank is None else 1.0 / rank,
        ndcg=0.0,
        margin=None,
        iou=None,
        completion=None,
    )


def build_behaviour() -> dict[str, Any]:
    """Return the part of report.json that tells how the policy behaves, all sections filled."""
    row = {
        "cond_recall_at_1": build_interval(0.6),
        "mrr": build_interval(0.5),
        "rc_rate": build_interval(0.4),
        "harm_rate": build_interval(0.1),
        "malformed_rate": None,
    }
    difference = {"mean": 0.1, "low": -0.1, "high": 0.3, "p_value": 0.4}
    curve = [
        {
            "threshold": t / 4,
            "rc_rate": 1 - t / 4,
            "harm_rate": 0.2 - t / 20,
            "num_harmed": 4 - t,
            "cond_recall_at_1": 0.7 - t / 20,
        }
        for t in range(5)
    ]
    return {
        "by_baseline_rank": {
            method: {bucket: _build_bucket(number, bucket) for number, bucket in enumerate(BUCKETS)}
            for method in ("full", "base", "sft", "rgrpo")
        },
        "threshold": {
            "harm_bound": 0.12,
            "harm_level": 0.05,
            "chosen": 0.5,
            "val": {"num_pictures": 40, "num_harmed": 2, "upper_limit": 0.1149},
            "val_curve": curve,
            "test_curve": curve[:4],
            "test": row,
        },
        "selection": {
            "num_samples": 4,
            "temperature": 0.7,
            "methods": {"greedy": row, "widest_gap": row, "median_box": row},
            "minus_greedy": {"widest_gap": difference, "median_box": difference},
        },
        "transfer": {
            "scorer": "models/other",
            "model_type": "siglip",
            "methods": {"full": row, "base": row, "rgrpo": row},
            "rgrpo_minus_full": difference,
        },
    }


def _build_bucket(number: int, bucket: str) -> dict[str, Any]:
    cropped = bucket not in ("1", "none")
    return {
        "num_queries": number + 4,
        "num_cropped": number if cropped else 0,
        "rc_rate": build_interval(number / 5),
        "first_when_cropped": build_interval(0.5) if cropped else None,
        "improved_when_cropped": build_interval(0.8) if cropped else None,
    }


def build_warmup_curve() -> list[CurvePoint]:
    return _build_curve("sft_loss", "sft_token_accuracy")


def build_train_curve() -> list[CurvePoint]:
    shares = _build_curve(
        "p_region", "p_full", "free_region_rate", "malformed_rate", "zero_signal_groups", "decision_target"
    )
    parts = _build_curve("reward_mrr", "reward_ndcg", "reward_rank")
    losses = [CurvePoint(step=point.step, metric="reward_margin", value=-point.value) for point in parts[:NUM_STEPS]]
    return [*_build_curve("reward", "kl", "entropy", "decision_loss", "decision_kl"), *shares, *parts, *losses]


def _build_curve(*metrics: str) -> list[CurvePoint]:
    return [
        CurvePoint(step=step, metric=metric, value=0.4 / (step + number))
        for number, metric in enumerate(metrics)
        for step in range(1, NUM_STEPS + 1)
    ]


def build_rollouts() -> list[Rollout]:
    box = Box(0.1, 0.1, 0.6, 0.6)
    return [
        Rollout(
            step=step,
            query_id="q00",
            arm=arm,
            completion="",
            decision="full" if arm == "full" else "region",
            box=None if arm == "full" else box,
            reward=reward + step - 1,
        )
        for step in range(1, NUM_STEPS + 1)
        for arm, reward in (("region", 1.0), ("region", 2.0), ("full", 0.0), ("free", -1.0))
    ]


def build_search(*, low: float = 0.1, high: float = 0.3) -> dict[str, Any]:
    """Return the sections of report.json about searching again; `low` and `high` bound the gain over the best rule."""
    means = {name: 0.3 + number / 20 for number, name in enumerate(table.SEARCH_LABELS)}
    difference = {"mean": 0.2, "low": 0.1, "high": 0.3, "p_value": 0.01}
    pairs = {name: dict.fromkeys(("recall_at_1", "recall_at_20", "mrr"), difference) for name in ("full", "base")}
    pairs["best_rule"] = pairs["full"] | {"recall_at_1": difference | {"low": low, "high": high}}
    pairs["reranked"] = pairs["full"]
    part = {metric: build_interval(0.4) for metric in ("recall_at_1", "recall_at_20", "harm_at_1")}
    shown = ("full", "base_union", "reranked", "rgrpo_union")
    return {
        "search": {name: _build_search_row(mean) for name, mean in means.items()},
        "paired_search": {f"rgrpo_minus_{name}": values for name, values in pairs.items()},
        "search_breakdown": {
            "scene": {
                value: {"num_queries": 12, "methods": dict.fromkeys(shown, part)} for value in ("clutter", "close-up")
            }
        },
        "search_choices": {
            "mode": "union",
            "num_candidates": SEARCH_DEPTH,
            "headline": "rgrpo_union",
            "settings": {
                name: {"margin": 0.1, "is_square": False, "fusion": 0.7 if name.endswith("union") else None}
                for name in means
                if name not in ("reranked", "perfect")
            },
            "best_rule": "base_union",
            "val": {
                name: {"recall_at_1": mean, "harm_at_1": 0.01}
                for name, mean in means.items()
                if name not in ("reranked", "perfect")
            },
        },
    }


def _build_search_row(mean: float) -> dict[str, dict[str, float]]:
    deeper = {f"recall_at_{depth}": build_interval(mean + depth / 100) for depth in (5, 10, 20)}
    rest = dict.fromkeys(("harm_at_1", "harm_at_20", "rc_rate", "malformed_rate"), build_interval(0.1))
    return {
        "recall_at_1": build_interval(mean),
        **deeper,
        "mrr": build_interval(0.5),
        "ndcg": build_interval(0.5),
        **rest,
    }


def plant_search(workspace: Workspace, answer_of: dict[str, str]) -> None:
    """Make of an evaluation one that searched again; the policy's view then finds `answer_of` each query it names.

    Args:
        workspace: holds an evaluation.
        answer_of: query id -> document that goes first.
    """
    folder = workspace.evaluation_dir
    report = read_json(folder / "report.json")
    write_json(folder / "report.json", report | build_search())
    rows = load_results(folder / "results.parquet")
    found = [row for row in rows if row.method == "rgrpo"]
    save_results(folder / "search_results.parquet", _find_answers(found, answer_of))


def _find_answers(rows: Sequence[QueryResult], answer_of: dict[str, str]) -> list[QueryResult]:
    return [
        replace(
            row,
            method="rgrpo_union",
            doc_ids=(answer_of[row.query_id], *row.doc_ids) if row.query_id in answer_of else row.doc_ids,
            scores=(1.0, *row.scores) if row.query_id in answer_of else row.scores,
            first_rank=1 if row.query_id in answer_of else row.first_rank,
        )
        for row in rows
    ]
