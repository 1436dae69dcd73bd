"""From the arms' folders to the tables: means over seeds, intervals, and the paper's order beside ours.

An order counts as ours only where the interval of the difference excludes 0; else no difference was measured. Arms of
another basis (other parameters, pools or SFT policy) are named as stale and stay out of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ablation.arms import ARMS, COLLAPSED, TABLES, ArmTable, Row
from pipeline.ablation.basis import METRICS, compute_basis, name_method
from pipeline.config import EvaluateParams, Params
from pipeline.core.significance import Interval, bootstrap_seeds, bootstrap_seeds_difference
from pipeline.errors import StageError
from pipeline.evaluation.figures import ResultTable
from pipeline.evaluation.query_set import load_query_set
from pipeline.store import load_curves, load_results, read_json
from pipeline.types import CurvePoint, Pool
from pipeline.workspace import Workspace

F64 = npt.NDArray[np.float64]
Tree = dict[str, Any]

NO_DIFFERENCE = "no difference measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """What one arm left.

    Attributes:
        name: of the arm.
        seeds: in the order trained.
        start: kind and digest of the policy before r-GRPO, and its p(REGION) where it was collapsed.
        table: rows of the full image and of every seed.
        curves: one list of points for each seed.
    """

    name: str
    seeds: tuple[int, ...]
    start: Mapping[str, Any]
    table: ResultTable
    curves: tuple[Sequence[CurvePoint], ...]

    def stack(self, metric: str) -> tuple[F64, F64]:
        """Return a metric's numerators (S, Q) and denominator (Q,)."""
        terms = [self.table.compute_terms(name_method(seed), metric) for seed in self.seeds]
        return np.stack([numerator_Q for numerator_Q, _ in terms]), terms[0][1]

    def mean_by_step(self, metric: str) -> list[dict[str, float]]:
        """Return the mean over seeds of a figure of training, by step."""
        by_step: dict[int, list[float]] = {}
        for point in (point for curve in self.curves for point in curve if point.metric == metric):
            by_step.setdefault(point.step, []).append(point.value)
        return [{"step": step, "value": float(np.mean(values))} for step, values in sorted(by_step.items())]


def summarise(params: Params, workspace: Workspace) -> Tree:
    """Return summary.json: every table of arms.py as far as its arms are up to date.

    Raises:
        StageError: no arm is.
    """
    basis = compute_basis(params, workspace)
    found = {
        name: read_json(workspace.ablation_dir / name / "result.json")
        for name in ARMS
        if (workspace.ablation_dir / name / "result.json").is_file()
    }
    pools = load_query_set(workspace, "test").pools
    stale = [name for name, result in found.items() if result["basis"] != basis]
    arms = {name: _load_arm(result, workspace, pools) for name, result in found.items() if name not in stale}
    if not arms:
        raise StageError("no arm of the ablations is up to date; run `region-r1 ablate`")
    sure = _Bootstrap(params.evaluate, params.seed)
    full = next(iter(arms.values())).table
    return {
        "basis": basis,
        "params_sha256": params.sha256(),
        "seeds": list(params.ablation.seeds),
        "max_steps": params.ablation.max_steps,
        "confidence": params.evaluate.confidence,
        "num_queries": len(full.query_ids),
        "num_with_positive": int(full.has_positive_Q.sum()),
        "missing": [name for name in ARMS if name not in found],
        "stale": stale,
        "tables": [_build_table(table, arms, sure) for table in TABLES if any(row.arm in arms for row in table.rows)],
        "collapsed": _compare_collapsed(arms, sure),
    }


class _Bootstrap:
    def __init__(self, params: EvaluateParams, seed: int) -> None:
        self._draws = {"num_resamples": params.num_resamples, "confidence": params.confidence, "seed": seed}

    def mean(self, arm: ArmResult, metric: str) -> Tree:
        numerator_SQ, denominator_Q = arm.stack(metric)
        interval = bootstrap_seeds(numerator_SQ, denominator_Q, **self._draws)  # type: ignore[arg-type]
        values_S = numerator_SQ.sum(axis=1) / denominator_Q.sum()
        return _to_tree(interval) | {"seeds": [float(value) for value in values_S]}

    def difference(self, a: ArmResult, b: ArmResult, metric: str) -> Tree:
        a_SQ, denominator_Q = a.stack(metric)
        return self._compare(a_SQ, b.stack(metric)[0], denominator_Q)

    def minus_full_image(self, arm: ArmResult, metric: str) -> Tree:
        numerator_SQ, denominator_Q = arm.stack(metric)
        return self._compare(numerator_SQ, arm.table.compute_terms("full", metric)[0][None], denominator_Q)

    def _compare(self, a_SQ: F64, b_SQ: F64, denominator_Q: F64) -> Tree:
        return _to_tree(bootstrap_seeds_difference(a_SQ, b_SQ, denominator_Q, **self._draws))  # type: ignore[arg-type]


def _load_arm(result: Mapping[str, Any], workspace: Workspace, pools: Sequence[Pool]) -> ArmResult:
    folder = workspace.ablation_dir / result["arm"]
    seeds = tuple(int(seed) for seed in result["seeds"])
    return ArmResult(
        name=result["arm"],
        seeds=seeds,
        start=result["start"],
        table=ResultTable(load_results(folder / "results.parquet"), pools),
        curves=tuple(load_curves(folder / f"curve-{seed}.parquet") for seed in seeds),
    )


def _build_table(table: ArmTable, arms: Mapping[str, ArmResult], sure: _Bootstrap) -> Tree:
    rows = [_build_row(row, table, arms, sure) for row in table.rows if row.arm in arms]
    verdicts = [row["claim"]["agrees"] for row in rows if row["claim"]]
    claimed = [row.arm for row in table.rows if row.above or row.arm in {other.above for other in table.rows}]
    is_whole = len(rows) == len(table.rows)
    by_mean = sorted(rows, key=lambda row: float(row["figures"][table.metric]["mean"]))
    return {
        "name": table.name,
        "title": table.title,
        "metric": table.metric,
        "reference": table.reference,
        "paper": table.source,
        "rows": rows,
        "order": {
            "paper": claimed or None,
            "ours": [row["arm"] for row in by_mean],
            "agrees": _join(verdicts) if is_whole else None,
        },
    }


def _join(verdicts: Sequence[bool | None]) -> bool | None:
    """Return False where one disagrees, True where all agree, else None: not decided, or nothing claimed."""
    if False in verdicts:
        return False
    return True if verdicts and all(verdicts) else None


def _build_row(row: Row, table: ArmTable, arms: Mapping[str, ArmResult], sure: _Bootstrap) -> Tree:
    arm = arms[row.arm]
    reference = arms.get(table.reference)
    is_other = reference is not None and reference is not arm
    return {
        "arm": row.arm,
        "title": row.title,
        "paper_mrr": None if row.paper_mrr is None else dict(zip(("infoseek", "evqa"), row.paper_mrr, strict=True)),
        "figures": {metric: sure.mean(arm, metric) for metric in METRICS},
        "minus_reference": {metric: sure.difference(arm, reference, metric) for metric in METRICS}
        if reference is not None and is_other
        else None,
        "claim": _judge(row, table, arms, sure) if row.above in arms else None,
    }


def _judge(row: Row, table: ArmTable, arms: Mapping[str, ArmResult], sure: _Bootstrap) -> Tree:
    assert row.above is not None  # the caller asked
    difference = sure.difference(arms[row.arm], arms[row.above], table.metric)
    below = next(other.title for other in table.rows if other.arm == row.above)
    agrees = True if difference["low"] > 0.0 else False if difference["high"] < 0.0 else None
    said = {
        True: f"as the paper has it: {row.title} above {below}",
        False: f"ours disagrees with the paper: {row.title} below {below}",
        None: f"{NO_DIFFERENCE} between {row.title} and {below}",
    }[agrees]
    return {"above": row.above, "metric": table.metric, "difference": difference, "agrees": agrees, "said": said}


def _compare_collapsed(arms: Mapping[str, ArmResult], sure: _Bootstrap) -> Tree | None:
    """Return how the arms fared that began collapsed; None where none of them is up to date.

    A collapsed policy is the full image. It counts as recovered when its CondR@1 at the end is above the full
    image's, the interval of the difference excluding 0.
    """
    pair = [arms[name] for name in COLLAPSED if name in arms]
    if not pair:
        return None
    return {
        "same_start": len({arm.start["digest"] for arm in pair}) == 1,
        "arms": {arm.name: _follow_collapsed(arm, sure) for arm in pair},
    }


def _follow_collapsed(arm: ArmResult, sure: _Bootstrap) -> Tree:
    gain = sure.minus_full_image(arm, "cond_recall_at_1")
    without_signal = [point.value for curve in arm.curves for point in curve if point.metric == "zero_signal_groups"]
    return {
        "start_p_region": arm.start["p_region"],
        "zero_signal_share": float(np.mean(without_signal)) if without_signal else None,
        "zero_signal_by_step": arm.mean_by_step("zero_signal_groups"),
        "region_rate_by_step": arm.mean_by_step("free_region_rate"),
        "rc_rate": sure.mean(arm, "rc_rate"),
        "cond_recall_at_1": sure.mean(arm, "cond_recall_at_1"),
        "minus_full_image": gain,
        "recovered": gain["low"] > 0.0,
    }


def _to_tree(interval: Interval) -> Tree:
    return {name: value for name, value in asdict(interval).items() if name != "num_ignored"}
