"""Every difference that the summary shows, with its interval, its p value, and its p value among all of them.

A reader who looks at many differences will find one whose interval leaves 0 out by luck: of fourteen that are none, one
does in every second summary. So the differences that are put before the reader, in words or in a table's column, are
counted as one family, and each says whether it survives Holm's correction over that family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.ablation.arm_result import F64, ArmResult
from pipeline.ablation.arms import COLLAPSED, TABLES
from pipeline.config import EvaluateParams
from pipeline.core.statistics.significance import Interval
from pipeline.core.statistics.significance_seeds import adjust_holm, bootstrap_seeds, bootstrap_seeds_difference

Tree = dict[str, Any]
Comparison = tuple[str, str, str]
"""Arm, what it is held against, metric."""

FULL_IMAGE: Final = "full image"
RECOVERY_METRIC: Final = "cond_recall_at_1"


class Comparisons:
    """Means of arms, and their differences; those of the family carry `p_holm`.

    Args:
        arms: those that are up to date, by name.
        picture_Q: (Q,) picture of each test query; intervals draw pictures whole.
        params: number of resamples and confidence.
        seed: fixes the draws.
    """

    def __init__(
        self, arms: Mapping[str, ArmResult], picture_Q: npt.NDArray[np.int64], params: EvaluateParams, seed: int
    ) -> None:
        self._arms = arms
        self._level = 1.0 - params.confidence
        self._draws: Any = {
            "num_resamples": params.num_resamples,
            "confidence": params.confidence,
            "seed": seed,
            "cluster_Q": picture_Q,
        }
        family = list_comparisons(arms)
        trees = [self._measure(comparison) for comparison in family]
        adjusted = adjust_holm([tree["p_value"] for tree in trees])
        self._family = {
            comparison: tree | {"p_holm": p_holm}
            for comparison, tree, p_holm in zip(family, trees, adjusted, strict=True)
        }

    def mean(self, arm: str, metric: str) -> Tree:
        """Return a figure with its interval, and each seed's."""
        numerator_SQ, denominator_Q = self._arms[arm].stack(metric)
        interval = bootstrap_seeds(numerator_SQ, denominator_Q, **self._draws)
        values_S = numerator_SQ.sum(axis=1) / denominator_Q.sum()
        return _to_tree(interval) | {"seeds": [float(value) for value in values_S]}

    def difference(self, arm: str, other: str, metric: str) -> Tree:
        """Return the arm minus another, or minus the full image."""
        comparison = (arm, other, metric)
        return self._family.get(comparison) or self._measure(comparison)

    def count(self) -> Tree:
        """Return how many comparisons there are, how many leave 0 out, and how many still do by Holm."""
        trees = self._family.values()
        return {
            "num": len(trees),
            "num_measured": sum(tree["low"] > 0.0 or tree["high"] < 0.0 for tree in trees),
            "num_after_holm": sum(self.survives(tree) for tree in trees),
        }

    def survives(self, tree: Mapping[str, Any]) -> bool:
        """Say whether a difference of the family is one by Holm's correction."""
        return bool(tree["p_holm"] <= self._level)

    def _measure(self, comparison: Comparison) -> Tree:
        arm, other, metric = comparison
        a_SQ, denominator_Q = self._arms[arm].stack(metric)
        return _to_tree(
            bootstrap_seeds_difference(a_SQ, self._stack_other(arm, other, metric), denominator_Q, **self._draws)
        )

    def _stack_other(self, arm: str, other: str, metric: str) -> F64:
        if other == FULL_IMAGE:
            return self._arms[arm].table.compute_terms("full", metric)[0][None]
        return self._arms[other].stack(metric)[0]


def list_comparisons(arms: Mapping[str, ArmResult]) -> list[Comparison]:
    """Return the family: claims, the column against each table's reference, and the ways out of the collapse."""
    found: list[Comparison] = []
    for table in TABLES:
        for row in table.rows:
            found += [
                (row.arm, other, table.metric) for other in (table.reference, row.above) if other and other != row.arm
            ]
    found += [(arm, FULL_IMAGE, RECOVERY_METRIC) for arm in COLLAPSED]
    return [
        (arm, other, metric)
        for arm, other, metric in dict.fromkeys(found)
        if arm in arms and (other in arms or other == FULL_IMAGE)
    ]


def _to_tree(interval: Interval) -> Tree:
    return {name: value for name, value in asdict(interval).items() if name != "num_ignored"}
