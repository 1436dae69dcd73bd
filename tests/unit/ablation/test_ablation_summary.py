"""The tables of the ablations from planted results: means, the paper's order beside ours, collapse and recovery."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.ablation.arms import ARMS
from pipeline.ablation.basis import METRICS, compute_basis, name_method
from pipeline.ablation.page import build_markdown, write_summary
from pipeline.ablation.summary import NO_DIFFERENCE, summarise
from pipeline.ablation.terminal import print_summary
from pipeline.config import EvaluateParams, Params
from pipeline.errors import StageError
from pipeline.files.store import save_curves, save_pools, save_queries, save_results, write_json
from pipeline.types import CurvePoint, Pool, Query, QueryResult
from pipeline.workspace import Workspace

NUM_QUERIES = 80
SEEDS = (5, 6)
PARAMS = Params.model_validate({"ablation": {"seeds": list(SEEDS), "max_steps": 3}, "evaluate": {"num_resamples": 200}})
FULL_IMAGE_RATE = 0.3


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Tables, pools and a policy folder; no arm yet."""
    workspace = Workspace.at(tmp_path)
    ids = [f"q{number:02d}" for number in range(NUM_QUERIES)]
    save_queries(
        workspace.tables_dir / "queries.parquet",
        [Query(query_id=i, split="test", question="?", image_path=f"{i}.png", width_px=4, height_px=4) for i in ids],
    )
    pools = [
        Pool(query_id=i, split="test", doc_ids=("a", "b"), scores=(0.9, 0.1), relevance=(False, True), num_relevant=1)
        for i in ids
    ]
    save_pools(workspace.pools_dir / "pools.parquet", pools)
    write_json(workspace.pools_dir / "meta.json", {"encoder_digest": "e"})
    write_json(workspace.sft_dir / "config.json", {})
    return workspace


def _rows(method: str, rate: float, decision: Any, seed: int = 0) -> list[QueryResult]:
    hits = np.random.default_rng(seed).permutation(NUM_QUERIES) < rate * NUM_QUERIES
    return [
        QueryResult(
            query_id=f"q{number:02d}",
            method=method,
            decision=decision,
            box=None,
            doc_ids=(),
            scores=(),
            first_rank=1 if hit else 2,
            reciprocal_rank=1.0 if hit else 0.5,
            ndcg=1.0,
            margin=None,
            iou=None,
            completion=None,
        )
        for number, hit in enumerate(hits)
    ]


def _plant(
    workspace: Workspace,
    rates: Mapping[str, float],
    *,
    basis: str | None = None,
    decision: str = "region",
    digest: str = "d",
) -> None:
    for name, rate in rates.items():
        folder = workspace.ablation_dir / name
        rows = _rows("full", FULL_IMAGE_RATE, "full")
        for seed in SEEDS:
            rows += _rows(name_method(seed), rate, decision, seed)
            points = [
                CurvePoint(step=step, metric=metric, value=value * seed)
                for step in (1, 2, 3)
                for metric, value in (("zero_signal_groups", 0.1), ("free_region_rate", 0.02 * step))
            ]
            save_curves(folder / f"curve-{seed}.parquet", points)
        save_results(folder / "results.parquet", rows)
        result = {
            "arm": name,
            "basis": basis or compute_basis(PARAMS, workspace),
            "start": {"kind": ARMS[name].start, "digest": digest, "p_region": 0.0005},
            "params": {},
            "seeds": {str(seed): {} for seed in SEEDS},
        }
        write_json(folder / "result.json", result)


def _get_table(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(table for table in summary["tables"] if table["name"] == name)


def test_an_arm_is_shown_with_mean_interval_and_seeds(workspace: Workspace) -> None:
    _plant(workspace, {"full": 0.5, "no_kl": 0.9})
    table = _get_table(summarise(PARAMS, workspace), "kl")
    full, no_kl = table["rows"]
    assert set(full["figures"]) == set(METRICS)
    figure = full["figures"]["cond_recall_at_1"]
    assert figure["mean"] == 0.5
    assert figure["seeds"] == [0.5, 0.5]
    assert figure["low"] < 0.5 < figure["high"]
    assert full["figures"]["mrr"]["mean"] == 0.75
    assert full["figures"]["rc_rate"]["mean"] == 1.0
    assert full["minus_reference"] is None
    assert no_kl["minus_reference"]["cond_recall_at_1"]["mean"] == pytest.approx(0.4)
    assert no_kl["minus_reference"]["cond_recall_at_1"]["low"] > 0.0
    assert table["order"] == {"paper": None, "ours": ["full", "no_kl"], "agrees": None}


def test_an_order_like_the_papers_agrees(workspace: Workspace) -> None:
    _plant(workspace, {"reward_mrr": 0.1, "reward_ndcg": 0.35, "reward_rank": 0.6, "full": 0.9})
    table = _get_table(summarise(PARAMS, workspace), "reward")
    assert table["order"]["agrees"] is True
    assert table["order"]["paper"] == table["order"]["ours"] == ["reward_mrr", "reward_ndcg", "reward_rank", "full"]
    assert all(row["claim"]["said"].startswith("as the paper has it") for row in table["rows"][1:])
    assert table["rows"][3]["paper_mrr"] == {"infoseek": 0.706, "evqa": 0.473}


def test_an_order_against_the_papers_says_so_in_the_row(workspace: Workspace) -> None:
    _plant(workspace, {"reward_mrr": 0.1, "reward_ndcg": 0.9, "reward_rank": 0.4, "full": 0.9})
    summary = summarise(PARAMS, workspace)
    table = _get_table(summary, "reward")
    assert table["order"]["agrees"] is False
    claims = [row["claim"]["agrees"] for row in table["rows"][1:]]
    assert claims == [True, False, True]
    assert table["rows"][2]["claim"]["said"] == "ours disagrees with the paper: + dRank below + dNDCG"
    assert "ours disagrees with the paper: + dRank below + dNDCG (mrr -0.250 [" in build_markdown(summary)


def test_a_difference_that_may_be_none_decides_nothing(workspace: Workspace) -> None:
    _plant(workspace, {"stock": 0.50, "balanced": 0.51})
    table = _get_table(summarise(PARAMS, workspace), "groups")
    claim = table["rows"][1]["claim"]
    assert claim["agrees"] is None
    assert claim["said"].startswith(NO_DIFFERENCE)
    assert table["order"]["agrees"] is None


def test_stale_and_missing_arms_are_named_and_left_out(workspace: Workspace) -> None:
    _plant(workspace, {"stock": 0.5})
    _plant(workspace, {"balanced": 0.9}, basis="of other parameters")
    summary = summarise(PARAMS, workspace)
    assert summary["stale"] == ["balanced"]
    assert "no_kl" in summary["missing"]
    table = _get_table(summary, "groups")
    assert [row["arm"] for row in table["rows"]] == ["stock"]
    assert "balanced: of other parameters or data, left out" in build_markdown(summary)
    other = PARAMS.model_copy(update={"seed": 99})
    with pytest.raises(StageError, match="no arm of the ablations is up to date"):
        summarise(other, workspace)


def test_recovery_is_a_measured_gain_over_the_full_image(workspace: Workspace) -> None:
    _plant(workspace, {"collapsed_balanced": 0.9})
    _plant(workspace, {"collapsed_stock": FULL_IMAGE_RATE}, decision="full")
    summary = summarise(PARAMS, workspace)
    found = summary["collapsed"]
    assert found["same_start"] is True
    stock, balanced = found["arms"]["collapsed_stock"], found["arms"]["collapsed_balanced"]
    assert (stock["recovered"], balanced["recovered"]) == (False, True)
    assert balanced["start_p_region"] == 0.0005
    assert balanced["zero_signal_share"] == pytest.approx(0.55)
    assert balanced["region_rate_by_step"][1] == {"step": 2, "value": pytest.approx(0.22)}
    assert (stock["rc_rate"]["mean"], balanced["rc_rate"]["mean"]) == (0.0, 1.0)
    assert _get_table(summary, "collapsed")["order"]["agrees"] is True


def test_arms_that_did_not_start_alike_are_said_not_to(workspace: Workspace) -> None:
    _plant(workspace, {"collapsed_stock": 0.3})
    _plant(workspace, {"collapsed_balanced": 0.9}, digest="another")
    summary = summarise(PARAMS, workspace)
    assert summary["collapsed"]["same_start"] is False
    assert "did not start from the same policy" in build_markdown(summary)


@pytest.mark.filterwarnings("ignore")  # altair, about its own use of narwhals
def test_files_are_json_markdown_and_a_drawing_with_every_arm(workspace: Workspace) -> None:
    _plant(workspace, dict.fromkeys(ARMS, 0.5))
    summary = summarise(PARAMS, workspace)
    write_summary(summary, workspace)
    folder = workspace.ablation_dir
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (folder / "summary.md").read_text() == build_markdown(summary)
    drawn = (folder / "ablation.svg").read_text()
    assert drawn.startswith("<svg")
    for table in summary["tables"]:
        assert table["title"] in drawn
        assert all(row["title"] in drawn for row in table["rows"])
    assert "collapsed_balanced" in drawn
    assert not list(folder.glob(".*partial*"))


def test_the_terminal_needs_80_columns(workspace: Workspace) -> None:
    _plant(workspace, dict.fromkeys(ARMS, 0.5))
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(summarise(PARAMS, workspace), console)
    output = console.export_text()
    assert "…" not in output
    assert max(len(line.rstrip()) for line in output.splitlines()) <= 80
    for name in ("stock GRPO", "+ factorised", "dMRR only", "without SFT", "KL off", "group of 16", "0.706 / 0.473"):
        assert name in output


def _plant_shared_pictures(workspace: Workspace) -> None:
    ids = [f"q{number:02d}" for number in range(NUM_QUERIES)]
    save_queries(
        workspace.tables_dir / "queries.parquet",
        [
            Query(query_id=i, split="test", question="?", image_path=f"{place // 8}.png", width_px=4, height_px=4)
            for place, i in enumerate(ids)
        ],
    )


def test_intervals_draw_pictures_whole(workspace: Workspace) -> None:
    _plant(workspace, {"full": 0.5, "no_kl": 0.9})
    apart = _get_table(summarise(PARAMS, workspace), "kl")["rows"][0]["figures"]["cond_recall_at_1"]
    _plant_shared_pictures(workspace)
    together = _get_table(summarise(PARAMS, workspace), "kl")["rows"][0]["figures"]["cond_recall_at_1"]
    assert together["mean"] == apart["mean"]
    assert (together["low"], together["high"]) != (apart["low"], apart["high"])


def test_every_difference_shown_is_counted_once(workspace: Workspace) -> None:
    _plant(workspace, dict.fromkeys(ARMS, 0.5))
    summary = summarise(PARAMS, workspace)
    # Groups 2; reward 3 against its first row and 2 more claims; start 1, KL 1, group size 2, collapse 1; 2 recoveries.
    assert summary["comparisons"]["num"] == 2 + 3 + 2 + 1 + 1 + 2 + 1 + 2
    shown = [
        row["minus_reference"][t["metric"]] for t in summary["tables"] for row in t["rows"] if row["minus_reference"]
    ]
    claimed = [row["claim"]["difference"] for t in summary["tables"] for row in t["rows"] if row["claim"]]
    assert all(tree["p_value"] <= tree["p_holm"] for tree in [*shown, *claimed])
    assert "of the 14 comparisons made here have an interval without 0" in build_markdown(summary)


def test_arms_that_are_left_out_are_not_counted(workspace: Workspace) -> None:
    _plant(workspace, {"full": 0.5, "no_kl": 0.9})
    assert summarise(PARAMS, workspace)["comparisons"] == {"num": 1, "num_measured": 1, "num_after_holm": 1}


def test_a_claim_that_only_luck_among_many_explains_does_not_survive(workspace: Workspace) -> None:
    _plant(workspace, dict.fromkeys(ARMS, 0.5))
    # Enough for an interval without 0, too little for one comparison among fourteen.
    _plant(workspace, {"balanced": 0.66})
    # The least p value of 200 resamples is 0.01, which times fourteen says nothing.
    params = PARAMS.model_copy(update={"evaluate": EvaluateParams(num_resamples=2000)})
    summary = summarise(params, workspace)
    claim = _get_table(summary, "groups")["rows"][1]["claim"]
    assert claim["agrees"] is True
    assert claim["difference"]["p_value"] < 0.05 < claim["difference"]["p_holm"]
    assert claim["survives_holm"] is False
    assert "does not survive Holm's correction" in build_markdown(summary)
    _plant(workspace, {"balanced": 1.0})
    claim = _get_table(summarise(params, workspace), "groups")["rows"][1]["claim"]
    assert claim["survives_holm"] is True
