"""What one arm left, read back: rows and curves of every seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.ablation.basis import name_method
from pipeline.evaluation.figures import ResultTable
from pipeline.files.store import load_curves, load_results
from pipeline.types import CurvePoint, Pool
from pipeline.workspace import Workspace

F64 = npt.NDArray[np.float64]


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


def load_arm(result: Mapping[str, Any], workspace: Workspace, pools: Sequence[Pool]) -> ArmResult:
    """Return an arm from its result.json and the files beside it."""
    folder = workspace.ablation_dir / result["arm"]
    seeds = tuple(int(seed) for seed in result["seeds"])
    return ArmResult(
        name=result["arm"],
        seeds=seeds,
        start=result["start"],
        table=ResultTable(load_results(folder / "results.parquet"), pools),
        curves=tuple(load_curves(folder / f"curve-{seed}.parquet") for seed in seeds),
    )
