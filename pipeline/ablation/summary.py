"""From the arms' folders to the tables: means over seeds, intervals, and the paper's order beside ours.

An order counts as ours only where the interval of the difference excludes 0; else no difference was measured. How many
differences were looked at is counted, and each claim says whether it survives that count (comparisons.py). Arms of
another basis (other parameters, pools or SFT policy) are named as stale and stay out of the tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.ablation.arm_result import ArmResult, load_arm
from pipeline.ablation.arms import ARMS, COLLAPSED, TABLES, ArmTable, Row
from pipeline.ablation.basis import METRICS, compute_basis
from pipeline.ablation.comparisons import FULL_IMAGE, RECOVERY_METRIC, Comparisons, Tree
from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.query_set import load_query_set, number_pictures
from pipeline.files.store import read_json
from pipeline.workspace import Workspace

NO_DIFFERENCE = "no difference measured"


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
    test = load_query_set(workspace, "test")
    stale = [name for name, result in found.items() if result["basis"] != basis]
    arms = {name: load_arm(result, workspace, test.pools) for name, result in found.items() if name not in stale}
    if not arms:
        raise StageError("no arm of the ablations is up to date; run `region-r1 ablate`")
    comparisons = Comparisons(arms, number_pictures(test.queries), params.evaluate, params.seed)
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
        "comparisons": comparisons.count(),
        "tables": [
            _build_table(table, arms, comparisons) for table in TABLES if any(row.arm in arms for row in table.rows)
        ],
        "collapsed": _compare_collapsed(arms, comparisons),
    }


def _build_table(table: ArmTable, arms: Mapping[str, ArmResult], comparisons: Comparisons) -> Tree:
    rows = [_build_row(row, table, arms, comparisons) for row in table.rows if row.arm in arms]
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


def _build_row(row: Row, table: ArmTable, arms: Mapping[str, ArmResult], comparisons: Comparisons) -> Tree:
    has_other = table.reference in arms and table.reference != row.arm
    return {
        "arm": row.arm,
        "title": row.title,
        "paper_mrr": None if row.paper_mrr is None else dict(zip(("infoseek", "evqa"), row.paper_mrr, strict=True)),
        "figures": {metric: comparisons.mean(row.arm, metric) for metric in METRICS},
        "minus_reference": {metric: comparisons.difference(row.arm, table.reference, metric) for metric in METRICS}
        if has_other
        else None,
        "claim": _build_claim(row, table, comparisons) if row.above in arms else None,
    }


def _build_claim(row: Row, table: ArmTable, comparisons: Comparisons) -> Tree:
    assert row.above is not None  # the caller asked
    difference = comparisons.difference(row.arm, row.above, table.metric)
    below = next(other.title for other in table.rows if other.arm == row.above)
    agrees = True if difference["low"] > 0.0 else False if difference["high"] < 0.0 else None
    verdict = {
        True: f"as the paper has it: {row.title} above {below}",
        False: f"ours disagrees with the paper: {row.title} below {below}",
        None: f"{NO_DIFFERENCE} between {row.title} and {below}",
    }[agrees]
    return {
        "above": row.above,
        "metric": table.metric,
        "difference": difference,
        "agrees": agrees,
        "survives_holm": comparisons.survives(difference),
        "said": verdict,
    }


def _compare_collapsed(arms: Mapping[str, ArmResult], comparisons: Comparisons) -> Tree | None:
    """Return how the arms fared that began collapsed; None where none of them is up to date.

    A collapsed policy is the full image. It counts as recovered when its CondR@1 at the end is above the full
    image's, the interval of the difference excluding 0.
    """
    pair = [arms[name] for name in COLLAPSED if name in arms]
    if not pair:
        return None
    return {
        "same_start": len({arm.start["digest"] for arm in pair}) == 1,
        "arms": {arm.name: _follow_collapsed(arm, comparisons) for arm in pair},
    }


def _follow_collapsed(arm: ArmResult, comparisons: Comparisons) -> Tree:
    gain = comparisons.difference(arm.name, FULL_IMAGE, RECOVERY_METRIC)
    without_signal = [point.value for curve in arm.curves for point in curve if point.metric == "zero_signal_groups"]
    return {
        "start_p_region": arm.start["p_region"],
        "zero_signal_share": float(np.mean(without_signal)) if without_signal else None,
        "zero_signal_by_step": arm.mean_by_step("zero_signal_groups"),
        "region_rate_by_step": arm.mean_by_step("free_region_rate"),
        "rc_rate": comparisons.mean(arm.name, "rc_rate"),
        "cond_recall_at_1": comparisons.mean(arm.name, "cond_recall_at_1"),
        "minus_full_image": gain,
        "recovered": gain["low"] > 0.0,
        "survives_holm": comparisons.survives(gain),
    }
