"""The evaluate stage: what counts as a query, what a malformed answer costs, a second witness."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation import methods
from pipeline.evaluation.figures import METRICS, ResultTable
from pipeline.evaluation.rows import score_choices
from pipeline.evaluation.trec import save_run
from pipeline.files.store import load_results, read_json, save_pools, save_queries
from pipeline.models.model_folder import compute_model_digest
from pipeline.runs.tracking import null_run
from pipeline.stages import answer, evaluate
from pipeline.types import Crop, KeepFull, Malformed, QueryResult
from tests.fakes.evaluation_fakes import (
    PARAMS,
    POOL_SIZE,
    FakeScorer,
    FakeWorld,
    ask_and_evaluate,
    build_fake_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("evaluation"), monkeypatch)
        ask_and_evaluate(PARAMS, world.workspace)
        yield world


@pytest.fixture
def report(world: FakeWorld) -> dict[str, object]:
    return read_json(world.workspace.evaluation_dir / "report.json")


def test_every_query_has_one_row_per_method(world: FakeWorld) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    assert len({(row.query_id, row.method) for row in rows}) == len(rows) == len(world.queries) * len(methods.METHODS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", methods.METHODS)
def test_figures_agree_with_an_independent_tool(world: FakeWorld, report: dict, method: str) -> None:
    import ir_measures
    from ir_measures import RR, Success, nDCG

    runs = world.workspace.evaluation_dir / "runs"
    qrels = list(ir_measures.read_trec_qrels(str(runs / "qrels.txt")))
    run = list(ir_measures.read_trec_run(str(runs / f"{method}.trec")))
    measures = {"mrr": RR, "ndcg": nDCG @ POOL_SIZE, "recall_at_1": Success @ 1, "recall_at_5": Success @ 5}
    found = ir_measures.calc_aggregate(measures.values(), qrels, run)
    for name, measure in measures.items():
        assert report["methods"][method][name]["mean"] == pytest.approx(found[measure], abs=1e-9)


def test_intervals_hold_their_mean(report: dict) -> None:
    for values in report["methods"].values():
        assert set(values) == set(METRICS)
        for interval in values.values():
            assert interval is None or interval["low"] <= interval["mean"] <= interval["high"]


def test_pool_without_positive_counts_as_zero(world: FakeWorld, report: dict) -> None:
    without = sum(not pool.has_positive for pool in world.pools)
    assert without > 0
    assert report["num_queries"] == len(world.queries)
    assert report["num_with_positive"] == len(world.queries) - without
    full = report["methods"]["full"]
    share = report["num_with_positive"] / report["num_queries"]
    assert full["recall_at_20"]["mean"] == pytest.approx(share)
    assert full["recall_at_1"]["mean"] == pytest.approx(full["cond_recall_at_1"]["mean"] * share)


def test_malformed_answer_is_a_miss_and_is_counted(world: FakeWorld, report: dict) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    malformed = [row for row in rows if row.decision == "malformed" and row.method == "rgrpo"]
    assert len(malformed) == 3
    assert all(row.reciprocal_rank == 0.0 and row.first_rank is None and row.doc_ids == () for row in malformed)
    assert report["methods"]["rgrpo"]["malformed_rate"]["mean"] == pytest.approx(3 / 24)


def test_oracle_is_never_below_the_full_image(world: FakeWorld) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    by_method = {method: [row for row in rows if row.method == method] for method in ("full", "oracle")}
    pairs = list(zip(by_method["full"], by_method["oracle"], strict=True))
    assert all(oracle.reciprocal_rank >= full.reciprocal_rank for full, oracle in pairs)
    assert any(oracle.reciprocal_rank > full.reciprocal_rank for full, oracle in pairs)


def test_oracle_and_full_image_bound_the_headroom(report: dict) -> None:
    assert report["methods"]["full"]["headroom"]["mean"] == 0.0
    assert report["methods"]["oracle"]["headroom"]["mean"] == 1.0
    assert report["methods"]["base"]["iou"] is None  # it never crops: no value, not 0


def test_harm_counts_lost_first_places_among_all_queries(world: FakeWorld, report: dict) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    full = {row.query_id: row.first_rank for row in rows if row.method == "full"}
    lost = sum(full[row.query_id] == 1 and row.first_rank != 1 for row in rows if row.method == "rgrpo")
    first = sum(rank == 1 for rank in full.values())
    figures = report["methods"]["rgrpo"]
    assert lost > 0
    assert figures["harm_rate"]["mean"] == pytest.approx(lost / 24)
    assert figures["harm_given_first"]["mean"] == pytest.approx(lost / first)


def test_breakdown_covers_every_query_once(report: dict) -> None:
    scene = report["breakdown"]["scene"]
    assert sum(shares["rgrpo"]["rc_rate"]["num_queries"] for shares in scene.values()) == 24
    for metric in ("rc_rate", "harm_rate"):
        parts = [shares["rgrpo"][metric] for shares in scene.values()]
        counted = sum(part["num_queries"] * part["value"]["mean"] for part in parts)
        assert counted == pytest.approx(24 * report["methods"]["rgrpo"][metric]["mean"])


def test_evaluation_is_repeatable(world: FakeWorld) -> None:
    folder = world.workspace.evaluation_dir
    names = ("report.json", "results.parquet", "val_results.parquet")
    before = {name: (folder / name).read_bytes() for name in names}
    evaluate.run(PARAMS, world.workspace, null_run())
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_random_crops_depend_on_seed_and_query_only(world: FakeWorld) -> None:
    forward = methods.choose_random(world.queries, PARAMS.search, 1)
    backward = methods.choose_random(world.queries[::-1], PARAMS.search, 1)
    assert forward == backward[::-1]
    assert forward != methods.choose_random(world.queries, PARAMS.search, 2)


def test_confidence_and_resamples_change_the_intervals(world: FakeWorld, report: dict) -> None:
    narrow = Params.model_validate({"evaluate": {"confidence": 0.6, "num_resamples": 150}})
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    table = ResultTable(rows, world.pools)
    again = evaluate.compute_report(
        table,
        world.queries,
        narrow.evaluate,
        seed=7,
        provenance={},
        choices={"best_rule": "base", "best_rgrpo": "rgrpo"},
        behaviour={},
        searched={},
    ).as_json()
    wide, tight = (source["methods"]["rgrpo"]["mrr"] for source in (report, again))
    assert tight["high"] - tight["low"] < wide["high"] - wide["low"]


def test_missing_row_is_refused(world: FakeWorld) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    with pytest.raises(ValueError, match="exactly one row"):
        ResultTable(rows[1:], world.pools)


def test_ties_are_written_in_our_order(tmp_path: Path) -> None:
    row = QueryResult(
        query_id="q",
        method="full",
        decision="full",
        box=None,
        doc_ids=("a", "b", "c"),
        scores=(0.5, 0.5, 0.5),
        first_rank=1,
        reciprocal_rank=1.0,
        ndcg=1.0,
        margin=None,
        iou=None,
        completion=None,
    )
    save_run(tmp_path / "run.trec", [row], "tag")
    scores = [np.float32(line.split()[4]) for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert scores[0] > scores[1] > scores[2]


def test_choices_become_rows_in_order(world: FakeWorld) -> None:
    queries, pools = world.queries[:3], world.pools[:3]
    choices = [(Malformed("x"), "?"), (KeepFull(), None), (Crop(methods.CENTRE_BOX), None)]
    rows = score_choices("sft", choices, queries, pools, FakeScorer(queries, pools))
    assert [row.decision for row in rows] == ["malformed", "full", "region"]
    assert [row.query_id for row in rows] == ["q00", "q01", "q02"]


def test_test_query_without_pool_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=4)
    for pools, named in (
        ([*world.pools[1:], *world.val_pools], "1 test queries have no pool"),
        ([*world.pools, *world.val_pools[2:]], "2 val queries have no pool"),
    ):
        save_pools(world.workspace.pools_dir / "pools.parquet", pools)
        with pytest.raises(StageError, match=f"{named}.*retrieve"):
            evaluate.run(PARAMS, world.workspace, null_run())
    save_queries(world.workspace.tables_dir / "queries.parquet", [])
    with pytest.raises(StageError, match="test"):
        evaluate.run(PARAMS, world.workspace, null_run())


def test_answers_to_other_queries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=4)
    with pytest.raises(StageError, match="run answer first"):
        evaluate.run(PARAMS, world.workspace, null_run())
    answer.run(PARAMS, world.workspace, null_run())
    changed = replace(world.queries[0], question="crop 0 0 0.5 0.5")
    save_queries(world.workspace.tables_dir / "queries.parquet", [changed, *world.queries[1:], *world.val_queries])
    with pytest.raises(StageError, match=r"answers other queries than lie in .*tables; run answer again") as caught:
        evaluate.run(PARAMS, world.workspace, null_run())
    assert "\n" not in str(caught.value)


def test_the_policy_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked is named in answers/meta.json; a policy trained since then waits for the stage answer."""
    world = build_fake_world(tmp_path, monkeypatch, num_queries=4)
    digest = compute_model_digest(world.workspace.policy_dir)
    answer.run(PARAMS, world.workspace, null_run())
    for folder in (world.workspace.sft_dir, world.workspace.policy_dir):
        shutil.rmtree(folder)
    evaluate.run(PARAMS, world.workspace, null_run())
    assert read_json(world.workspace.evaluation_dir / "report.json")["policy_digest"] == digest


def test_report_json_is_strict(world: FakeWorld) -> None:
    text = (world.workspace.evaluation_dir / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["confidence"] == 0.95
