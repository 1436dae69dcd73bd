"""Small records for the report's charts and page: every section has something to show."""

from __future__ import annotations

from typing import Any

from pipeline.types import Box, CurvePoint, Rollout

NUM_STEPS = 6
BUCKETS = ("1", "2-3", "4-10", "11+", "none")


def build_interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1)}


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
