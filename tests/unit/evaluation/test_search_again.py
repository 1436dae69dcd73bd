"""Searching again in the stage evaluate: settings by val alone, the report's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.methods import Choice, QuerySet
from pipeline.evaluation.search import choices
from pipeline.evaluation.search.choices import SEARCH_METHODS, carry_search, choose_search
from pipeline.evaluation.search.figures import SEARCH_METRICS
from pipeline.evaluation.search.rankings import RRF, SearchSetting
from pipeline.files.store import load_results, read_json, write_json
from pipeline.runs.tracking import null_run
from pipeline.stages import evaluate
from pipeline.types import Box, Crop, Pool, Query, QueryResult
from tests.fakes.evaluation_fakes import PARAMS, POOL_SIZE, FakeWorld, ask_and_evaluate, build_fake_world

_BOX = Box(0.1, 0.2, 0.6, 0.7)
_SIZE = 4


class _Table:
    """Gives each method and setting the ranks that a test plants; nothing else is known of any query set but val."""

    def __init__(self, val: QuerySet, ranks: Mapping[tuple[str, SearchSetting], Sequence[int | None]]) -> None:
        self._val, self._ranks = val, ranks
        self.default: Sequence[int | None] = [None] * _SIZE

    def rank(
        self, method: str, asked: Sequence[Choice], queries: QuerySet, setting: SearchSetting
    ) -> list[QueryResult]:
        assert queries is self._val
        assert len(asked) == _SIZE
        ranks = self._ranks.get((method, setting), self.default)
        return [_build_row(method, query.query_id, rank) for query, rank in zip(queries.queries, ranks, strict=True)]


def _build_row(method: str, query_id: str, first_rank: int | None) -> QueryResult:
    return QueryResult(
        query_id=query_id,
        method=method,
        decision="full" if method == "full" else "region",
        box=None,
        doc_ids=(),
        scores=(),
        first_rank=first_rank,
        reciprocal_rank=1.0 / first_rank if first_rank else 0.0,
        ndcg=0.0,
        margin=None,
        iou=None,
        completion=None,
    )


def _build_val(*, num_relevant: int = 1) -> QuerySet:
    queries = [
        Query(query_id=f"v{i}", split="val", question="?", image_path="x.png", width_px=9, height_px=9)
        for i in range(_SIZE)
    ]
    pools = [
        Pool(
            query_id=query.query_id,
            split="val",
            doc_ids=("d",),
            scores=(0.5,),
            relevance=(False,),
            num_relevant=num_relevant,
        )
        for query in queries
    ]
    return QuerySet(queries, pools)


def _choose(
    ranks: Mapping[tuple[str, SearchSetting], Sequence[int | None]], val: QuerySet | None = None
) -> choices.SearchChoices:
    val = val or _build_val()
    table: Any = _Table(val, ranks)
    answers: dict[str, list[Choice]] = {
        name: [(Crop(_BOX), "said") for _ in val.queries] for name in ("base", "sft", "rgrpo")
    }
    return choose_search(answers, val, table)


def test_val_chooses_by_first_places_then_by_harm_then_by_order() -> None:
    plain = SearchSetting()
    chosen = _choose(
        {
            ("full", plain): [1, None, None, None],
            # Two first places each; only the last keeps the one that the full image had.
            ("base_grown", SearchSetting(margin=0.05)): [2, 1, 1, None],
            ("base_grown", SearchSetting(margin=0.3)): [1, 2, 1, None],
            ("base_grown", SearchSetting(margin=0.4)): [1, 1, None, None],
            ("base_squared", SearchSetting(margin=0.5, is_square=True)): [2, 1, 1, 1],
            ("rgrpo_union", SearchSetting(fusion=RRF)): [1, 1, 1, 2],
        }
    )
    assert chosen.settings["base_grown"] == SearchSetting(margin=0.3)
    assert chosen.settings["base_squared"] == SearchSetting(margin=0.5, is_square=True)
    assert chosen.settings["rgrpo_union"] == SearchSetting(fusion=RRF)
    assert chosen.settings["base_union"] == SEARCH_METHODS["base_union"].settings[0]  # all equal: the first
    assert chosen.best_rule == "base_squared"
    assert chosen.val["base_grown"] == {"recall_at_1": 0.5, "harm_at_1": 0.0}
    assert chosen.val["base_squared"] == {"recall_at_1": 0.75, "harm_at_1": 0.25}


def test_of_equal_rules_the_less_harmful_is_the_best() -> None:
    plain = SearchSetting()
    ranks = {
        ("full", plain): [1, None, None, None],
        ("base", plain): [1, 1, None, None],
        ("base_grown", plain): [None, 1, 1, None],
    }
    assert _choose(ranks).best_rule == "base"
    assert _choose({("full", plain): [1, 1, 1, 1]}).best_rule == "full"
    assert _choose({}).best_rule == "base_grown"  # all equal: the first


@pytest.mark.parametrize("val", [QuerySet([], []), _build_val(num_relevant=0)], ids=["no query", "no answer"])
def test_without_val_only_what_leaves_nothing_open_is_searched_with(val: QuerySet) -> None:
    table: Any = None
    chosen = choose_search({}, val, table)
    assert set(chosen.settings) == {"full", "base", "sft", "rgrpo", "perfect"}
    assert (chosen.best_rule, chosen.val) == (None, {})


def test_another_world_takes_over_what_val_chose(tmp_path: Path) -> None:
    chosen = _choose({("rgrpo_union", SearchSetting(fusion=RRF)): [1, 1, 1, 2]})
    path = tmp_path / "report.json"
    write_json(path, {"search_choices": {"mode": "union"} | chosen.as_json()})
    assert carry_search(path) == chosen
    write_json(path, {})
    with pytest.raises(StageError, match=r"did not search again; set retrieve\.search_again"):
        carry_search(path)


# ---------------------------------------------------------------------------- in the stage evaluate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("searched"), monkeypatch)
        ask_and_evaluate(PARAMS, world.workspace)
        yield world


@pytest.fixture
def report(world: FakeWorld) -> dict[str, Any]:
    return dict(read_json(world.workspace.evaluation_dir / "report.json"))


_METHODS = {*SEARCH_METHODS, "reranked"}


def test_the_report_names_every_figure(world: FakeWorld, report: dict[str, Any]) -> None:
    assert set(report["search"]) == _METHODS
    for values in report["search"].values():
        assert set(values) == set(SEARCH_METRICS)
        assert all(interval["low"] <= interval["mean"] <= interval["high"] for interval in values.values())
    assert set(report["paired_search"]) == {f"rgrpo_minus_{name}" for name in ("full", "base", "best_rule", "reranked")}
    chosen = report["search_choices"]
    assert (chosen["mode"], chosen["num_candidates"], chosen["headline"]) == ("union", POOL_SIZE, "rgrpo_union")
    shown = {"full", chosen["best_rule"], "reranked", "rgrpo_union"}
    scene = report["search_breakdown"]["scene"]
    assert sum(part["num_queries"] for part in scene.values()) == len(world.queries)
    assert all(set(part["methods"]) == shown for part in scene.values())


def test_differences_are_those_of_the_headline(report: dict[str, Any]) -> None:
    search, best_rule = report["search"], report["search_choices"]["best_rule"]
    for name, other in (("full", "full"), ("best_rule", best_rule), ("reranked", "reranked")):
        for metric in ("recall_at_1", "recall_at_20", "mrr"):
            difference = search["rgrpo_union"][metric]["mean"] - search[other][metric]["mean"]
            assert report["paired_search"][f"rgrpo_minus_{name}"][metric]["mean"] == pytest.approx(difference)


def test_documents_that_were_in_no_pool_are_found(world: FakeWorld, report: dict[str, Any]) -> None:
    rows = load_results(world.workspace.evaluation_dir / "search_results.parquet")
    assert len(rows) == len(_METHODS) * len(world.queries)
    without = {pool.query_id for pool in world.pools if not pool.has_positive}
    found = {(row.method, row.query_id) for row in rows if row.first_rank and row.query_id in without}
    assert {method for method, _ in found} >= {"rgrpo", "rgrpo_union", "perfect"}
    assert not {method for method, _ in found} & {"full", "reranked"}
    assert report["search"]["perfect"]["recall_at_20"]["mean"] > report["search"]["full"]["recall_at_20"]["mean"]
    assert report["search"]["full"]["recall_at_1"] == report["methods"]["full"]["recall_at_1"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", sorted(_METHODS))
def test_figures_agree_with_an_independent_tool(world: FakeWorld, report: dict[str, Any], method: str) -> None:
    import ir_measures
    from ir_measures import RR, Success, nDCG

    runs = world.workspace.evaluation_dir / "runs"
    qrels = list(ir_measures.read_trec_qrels(str(runs / "qrels.txt")))
    run = list(ir_measures.read_trec_run(str(runs / f"search_{method}.trec")))
    measures = {"mrr": RR, "ndcg": nDCG @ POOL_SIZE, "recall_at_1": Success @ 1, "recall_at_20": Success @ 20}
    found = ir_measures.calc_aggregate(measures.values(), qrels, run)
    for name, measure in measures.items():
        assert report["search"][method][name]["mean"] == pytest.approx(found[measure], abs=1e-9)


def test_harm_counts_what_the_full_image_had(world: FakeWorld, report: dict[str, Any]) -> None:
    rows = load_results(world.workspace.evaluation_dir / "search_results.parquet")
    ranks = {(row.method, row.query_id): row.first_rank or 99 for row in rows}
    for depth in (1, 20):
        lost = sum(ranks["full", query.query_id] <= depth < ranks["rgrpo", query.query_id] for query in world.queries)
        assert report["search"]["rgrpo"][f"harm_at_{depth}"]["mean"] == pytest.approx(lost / len(world.queries))
        assert report["search"]["full"][f"harm_at_{depth}"]["mean"] == 0.0


def _evaluate_with(params: Params, world: FakeWorld) -> tuple[dict[str, float], dict[str, Any]]:
    figures = evaluate.run(params, world.workspace, null_run())
    return figures, dict(read_json(world.workspace.evaluation_dir / "report.json"))


def _set_mode(mode: str) -> Params:
    retrieve = PARAMS.retrieve.model_copy(update={"search_again": mode})
    return PARAMS.model_copy(update={"retrieve": retrieve})


def test_the_mode_names_the_headline_and_off_searches_nothing(world: FakeWorld) -> None:
    figures, report = _evaluate_with(_set_mode("replace"), world)
    assert report["search_choices"]["headline"] == "rgrpo"
    best = report["search"]["rgrpo"]["recall_at_1"]["mean"]
    full = report["search"]["full"]["recall_at_1"]["mean"]
    assert figures["paired_search.rgrpo_minus_full.recall_at_1"] == pytest.approx(best - full)
    assert figures["search.rgrpo.recall_at_1"] == best
    figures, report = _evaluate_with(_set_mode("off"), world)
    assert not [name for name in (*figures, *report) if "search" in name]
    assert load_results(world.workspace.evaluation_dir / "search_results.parquet") == []
    assert not list((world.workspace.evaluation_dir / "runs").glob("search_*"))
    ask_and_evaluate(PARAMS, world.workspace)


def test_without_val_queries_the_view_s_own_search_is_the_headline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=8, num_val=0)
    ask_and_evaluate(PARAMS, world.workspace)
    report = read_json(world.workspace.evaluation_dir / "report.json")
    assert set(report["search"]) == {"full", "base", "sft", "rgrpo", "perfect", "reranked"}
    assert report["search_choices"]["headline"] == "rgrpo"
    assert report["search_choices"]["best_rule"] is None
    assert set(report["paired_search"]) == {"rgrpo_minus_full", "rgrpo_minus_base", "rgrpo_minus_reranked"}
