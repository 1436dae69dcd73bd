"""The report's charts: what is counted, what is drawn, what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.report import charts, result_figures, training_charts, training_figures
from pipeline.report.theme import FULL, MALFORMED, REGION, build_spec
from pipeline.types import Box, CurvePoint
from tests.fakes import report_fakes as fakes


def _read_rows(spec: dict) -> list[dict]:
    views = [spec, *spec.get("layer", [])]
    return [row for view in views if "data" in view for row in view["data"]["values"]]


def test_coverage_is_the_share_of_boxes_over_each_cell() -> None:
    left_half, all_of_it = Box(0.0, 0.0, 0.5, 1.0), Box(0.0, 0.0, 1.0, 1.0)
    coverage = charts.compute_coverage([left_half, all_of_it])
    assert coverage.shape == (28, 28)
    assert np.all(coverage[:, :14] == 1.0)
    assert np.all(coverage[:, 14:] == 0.5)


def test_coverage_has_rows_from_the_top() -> None:
    coverage = charts.compute_coverage([Box(0.0, 0.0, 1.0, 0.25)])
    assert coverage.sum() == 7 * 28
    assert np.all(coverage[:7] == 1.0)


def test_coverage_of_no_box_is_no_number() -> None:
    with pytest.raises(ValueError, match="no box"):
        charts.compute_coverage([])


def test_method_without_value_has_no_row() -> None:
    report = {"methods": {"full": {"iou": None}, "rgrpo": {"iou": fakes.build_interval(0.4)}}}
    rows = _read_rows(build_spec(charts.draw_methods(report, "iou", "IoU"), "IoU"))
    assert [row["method"] for row in rows] == ["r-GRPO"]
    assert rows[0]["mean"] == 0.4


def test_bucket_without_crops_has_no_bar_of_success() -> None:
    by_rank = fakes.build_behaviour()["by_baseline_rank"]
    rows = _read_rows(build_spec(charts.draw_success_by_rank(by_rank["rgrpo"]), "success"))
    assert {row["bucket"] for row in rows} == {"2-3|n = 1", "4-10|n = 2", "11+|n = 3"}
    assert len(rows) == 6


def test_arm_rewards_are_means_by_step_from_one() -> None:
    rewards = training_charts.compute_arm_rewards(fakes.build_rollouts())
    assert list(rewards["region"]) == list(range(1, fakes.NUM_STEPS + 1))
    assert rewards["region"][1] == 1.5
    assert rewards["free"][3] == 1.0


def test_arm_without_rows_has_no_line() -> None:
    forced = [rollout for rollout in fakes.build_rollouts() if rollout.arm != "free"]
    assert set(training_charts.compute_arm_rewards(forced)) == {"region", "full"}


def test_smoothing_keeps_a_constant_and_never_hides_the_raw_line() -> None:
    assert training_charts.smooth([2.0] * 7, 5) == [2.0] * 7
    assert training_charts.choose_window(24) == 3
    assert training_charts.choose_window(140) == 15
    spec = build_spec(training_charts.draw_curve({1: 1.0, 2: 3.0, 3: 5.0, 4: 4.0}, "loss"), "loss")
    assert [row["value"] for row in _read_rows(spec)] == [1.0, 3.0, 5.0, 4.0]
    assert [row["smooth"] for row in _read_rows(spec)] == [2.0, 3.0, 4.0, 4.5]


def test_reward_parts_stack_gains_up_and_losses_down() -> None:
    parts = {"reward_mrr": {1: 0.2}, "reward_ndcg": {1: -0.1}, "reward_rank": {1: 0.3}, "reward_margin": {1: -0.2}}
    rows = _read_rows(build_spec(training_charts.draw_reward_parts(parts), "parts"))
    spans = {row["part"]: (row["start"], pytest.approx(row["end"])) for row in rows if "part" in row}
    assert spans == {"MRR": (0.0, 0.2), "NDCG": (0.0, -0.1), "log rank": (0.2, 0.5), "margin": (-0.1, -0.3)}
    assert [row["value"] for row in rows if "part" not in row] == [pytest.approx(0.2)]


def test_decision_shares_fill_one() -> None:
    chart = training_charts.draw_decision_balance({1: 0.5, 2: 0.1}, {1: 0.3, 2: 0.9})
    rows = _read_rows(build_spec(chart, "balance"))
    assert [pytest.approx(row["p"]) for row in rows] == [0.5, 0.3, 0.2, 0.1, 0.9, 0.0]


def test_the_wanted_decision_stands_beside_the_policys() -> None:
    rows = _read_rows(build_spec(training_charts.draw_wanted_decision({1: 0.7}, {1: 0.2}), "wanted"))
    assert {row["series"]: row["value"] for row in rows} == {"wanted": 0.7, "policy": 0.2}


def test_both_kls_are_shown_and_told_apart() -> None:
    figures = training_figures.draw_training_figures((), fakes.build_train_curve(), fakes.build_rollouts())
    shown = {figure.key: figure for figures_ in figures.values() for figure in figures_}
    assert "box tokens" in shown["kl"].title
    assert {"decision_kl", "decision_loss", "decision_target"} <= shown.keys()


def test_decisions_have_their_own_colours_everywhere() -> None:
    figures = training_figures.draw_training_figures((), fakes.build_train_curve(), fakes.build_rollouts())
    scales = {figure.key: _find_colours(figure.spec) for figures_ in figures.values() for figure in figures_}
    assert scales["decision_balance"] == {"REGION": REGION, "FULL": FULL, "anything else": MALFORMED}
    assert scales["arm_rewards"]["region"] == REGION
    assert scales["arm_rewards"]["full"] == FULL
    assert scales["free_rates"] == {"cropped": REGION, "malformed": MALFORMED}
    assert len({REGION, FULL, MALFORMED}) == 3


def _find_colours(spec: dict) -> dict[str, str]:
    encoding = spec.get("encoding") or spec["layer"][0]["encoding"]
    scale = encoding.get("color", {}).get("scale")
    return dict(zip(scale["domain"], scale["range"], strict=True)) if scale else {}


def test_figure_whose_series_was_not_logged_is_left_out() -> None:
    curve = [CurvePoint(step=1, metric="reward", value=0.5)]
    figures = training_figures.draw_training_figures((), curve, ())
    assert {key: [figure.key for figure in shown] for key, shown in figures.items()} == {
        "sft": [],
        "rgrpo": ["reward"],
        "reward": [],
        "decisions": [],
    }


def test_sections_of_behaviour_appear_when_they_were_measured() -> None:
    report = {
        "num_with_positive": 3,
        "confidence": 0.95,
        "methods": {"rgrpo": {"cond_recall_at_1": fakes.build_interval(0.5)}},
    }
    bare = result_figures.draw_result_figures(report, [], [])
    assert {key for key, figures in bare.items() if figures} == {"methods"}
    whole = result_figures.draw_result_figures(
        {**report, "behaviour": fakes.build_behaviour()}, [Box(0.0, 0.0, 0.5, 0.5)], []
    )
    keys = [figure.key for figures in whole.values() for figure in figures]
    assert keys == ["methods", "rc_by_rank", "success_by_rank", "coverage_crops", "threshold_harm", "threshold_recall"]


def test_thresholds_stand_by_log_odds_and_the_endless_ones_at_the_edges() -> None:
    curve = [{"threshold": t, "harm_rate": 0.1} for t in (0.0, 0.5, 0.95, 1.01)]
    threshold = {"chosen": None, "val_curve": curve, "test_curve": []}
    rows = _read_rows(build_spec(charts.draw_threshold(threshold, "harm_rate", "harm", bound=None), "harm"))
    assert [row["at"] for row in rows] == [-9, 0.0, pytest.approx(2.944, abs=1e-3), 9]


def _note_of_threshold(**changes: object) -> str:
    report = {
        "num_with_positive": 3,
        "confidence": 0.95,
        "methods": {"rgrpo": {"cond_recall_at_1": fakes.build_interval(0.5)}},
        "behaviour": {"threshold": {**fakes.build_behaviour()["threshold"], **changes}},
    }
    harm, _ = result_figures.draw_result_figures(report, [], [])["threshold"]
    return harm.note


def test_bound_level_evidence_and_test_harm_are_said() -> None:
    assert _note_of_threshold().endswith(
        "bound of 12 %; chosen on val: 0.5 (dashed), which harms 2 of 40 val pictures, so at most 11 % of all at 95 % "
        "confidence; on test it harms 10.0 % of the queries."
    )


def test_no_threshold_that_keeps_the_bound_is_said() -> None:
    none = {"num_pictures": 40, "num_harmed": 0, "upper_limit": 0.0}
    assert _note_of_threshold(chosen=1.01, val=none).endswith("to rank more answers first: never crop.")
    assert _note_of_threshold(chosen=None, val=None).endswith("so no threshold is chosen.")


@pytest.mark.parametrize(("chosen", "shown"), [(0.5, "0.5"), (1.01, "1.01")])
def test_a_threshold_of_another_run_is_said_to_be_one(chosen: float, shown: str) -> None:
    note = _note_of_threshold(chosen=chosen, val=None)
    assert f"taken over from the run whose policies these are: {shown} (dashed); on test it harms 10.0 %" in note
