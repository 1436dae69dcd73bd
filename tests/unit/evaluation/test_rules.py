"""Rules that nobody trained: what they do, what their choice may see, what the report says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.boxes import grow_box
from pipeline.core.ranking import compute_outcome
from pipeline.core.region_search import Reshaping
from pipeline.core.statistics.significance import Interval
from pipeline.errors import StageError
from pipeline.evaluation.figures import Bootstrap, ResultTable
from pipeline.evaluation.methods import METHODS, Choice, QuerySet
from pipeline.evaluation.probes.selection import compute_gap
from pipeline.evaluation.rows import build_rows
from pipeline.evaluation.rules import (
    KEPT_WEIGHTS,
    RULES,
    WEIGHTS,
    Look,
    Rule,
    Setting,
    Source,
    apply_rule,
    choose_setting,
    rank_by_rule,
    take_looks,
)
from pipeline.evaluation.val_choices import (
    NO_TARGET,
    NO_VAL,
    TRAINED,
    UNTRAINED,
    carry_choices,
    choose_on_val,
    pick_best,
    rank_methods,
)
from pipeline.files.store import load_results, read_json, save_pools, save_queries
from pipeline.models.model_folder import compute_model_digest
from pipeline.runs.tracking import null_run
from pipeline.stages import evaluate
from pipeline.stages import report as report_stage
from pipeline.types import Box, Crop, KeepFull, Malformed, Pool
from pipeline.workspace import Workspace
from tests.fakes.evaluation_fakes import (
    PARAMS,
    FakePolicy,
    FakeRanking,
    FakeScorer,
    FakeWorld,
    ask_and_evaluate,
    build_fake_world,
)

_POOL = Pool(
    query_id="q",
    split="val",
    doc_ids=("a", "b", "c"),
    scores=(0.9, 0.8, 0.1),
    relevance=(False, True, False),
    num_relevant=1,
)
_FRACTIONS = st.tuples(*[st.floats(0.0, 1.0)] * 4)


@st.composite
def _boxes(draw: st.DrawFn) -> Box:
    x0, y0, x1, y1 = draw(_FRACTIONS.filter(lambda c: c[0] < c[2] and c[1] < c[3]))
    return Box(x0, y0, x1, y1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("rules"), monkeypatch)
        ask_and_evaluate(PARAMS, world.workspace)
        yield world


@pytest.fixture
def report(world: FakeWorld) -> dict[str, Any]:
    return read_json(world.workspace.evaluation_dir / "report.json")


def _ranking(*scores: float) -> FakeRanking:
    scores_K = np.array(scores, dtype=np.float32)
    return FakeRanking(compute_outcome(scores_K, _POOL.relevance, _POOL.num_relevant), scores_K)


_REGION = Box(0.2, 0.2, 0.6, 0.6)


def _look(crop: FakeRanking | None, full: FakeRanking) -> Look:
    """A policy that crops its region, or that keeps the full image and knows of no region."""
    decision = KeepFull() if crop is None else Crop(_REGION)
    return Look((decision, "said"), None if crop is None else _REGION, crop, full)


def _keep(region: FakeRanking, full: FakeRanking) -> Look:
    """A policy that keeps the full image and would crop a region if it had to."""
    return Look((KeepFull(), "said"), _REGION, region, full)


def _val(world: FakeWorld) -> QuerySet:
    return QuerySet(world.val_queries, world.val_pools)


def _scorer(world: FakeWorld) -> FakeScorer:
    return FakeScorer([*world.queries, *world.val_queries], [*world.pools, *world.val_pools])


def _answer(queries: QuerySet, *, force_region: bool = False) -> list[Choice]:
    questions = [query.question for query in queries.queries]
    answers = FakePolicy("policy").decide([], questions, force_region=force_region)
    return [(answer.decision, answer.completion) for answer in answers]


def _source(queries: QuerySet) -> Source:
    return Source(_answer(queries), _answer(queries, force_region=True))


def _unforced(choices: Sequence[Choice]) -> Source:
    return Source(choices, choices)


# ---------------------------------------------------------------------------- growing


@given(box=_boxes(), margin=st.floats(0.0, 2.0))
def test_grown_box_holds_the_box_and_stays_in_the_picture(box: Box, margin: float) -> None:
    grown = grow_box(box, margin)
    assert grown.x0 <= box.x0
    assert grown.y0 <= box.y0
    assert grown.x1 >= box.x1
    assert grown.y1 >= box.y1
    assert grow_box(box, 0.0) == box


def test_growth_is_measured_by_the_boxs_own_sides() -> None:
    assert grow_box(Box(0.4, 0.2, 0.6, 0.6), 0.5).as_tuple() == pytest.approx((0.3, 0.0, 0.7, 0.8))
    for margin in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="margin"):
            grow_box(Box(0.4, 0.2, 0.6, 0.6), margin)


# ---------------------------------------------------------------------------- one query


def test_full_and_malformed_stay_what_they_are() -> None:
    full = _ranking(0.9, 0.8, 0.1)
    for setting in (
        Setting(margin=0.5),
        Setting(gap_ratio=1.0),
        Setting(weight=0.5),
        Setting(weight=0.5, kept_weight=0.5),
    ):
        kept = apply_rule(setting, _look(None, full), _POOL)
        assert (kept.decision, kept.ranking) == (KeepFull(), full)
        for region, crop in ((None, None), (_REGION, _ranking(0.2, 0.9, 0.1))):
            missed = apply_rule(setting, Look((Malformed("no box"), "?"), region, crop, full), _POOL)
            assert (missed.decision, missed.ranking) == (Malformed("no box"), None)


def test_a_kept_query_is_ranked_by_its_own_weight() -> None:
    region, full = _ranking(0.2, 0.9, 0.1), _ranking(0.9, 0.8, 0.1)
    kept = apply_rule(Setting(weight=1.0, kept_weight=0.4), _keep(region, full), _POOL)
    assert kept.ranking is not None
    assert kept.ranking.scores_K.tolist() == pytest.approx([0.4 * 0.2 + 0.6 * 0.9, 0.4 * 0.9 + 0.6 * 0.8, 0.1])
    assert kept.ranking.outcome == compute_outcome(kept.ranking.scores_K, _POOL.relevance, _POOL.num_relevant)
    assert kept.decision == Crop(_REGION)
    cropped = apply_rule(Setting(weight=1.0, kept_weight=0.4), _look(region, full), _POOL)
    assert cropped.ranking is not None
    assert cropped.ranking.outcome == region.outcome


@pytest.mark.parametrize("kept_weight", [None, 0.0])
def test_without_a_weight_of_its_own_a_kept_query_stays_with_the_full_image(kept_weight: float | None) -> None:
    region, full = _ranking(0.2, 0.9, 0.1), _ranking(0.9, 0.8, 0.1)
    for weight in WEIGHTS:
        kept = apply_rule(Setting(weight=weight, kept_weight=kept_weight), _keep(region, full), _POOL)
        assert (kept.decision, kept.ranking) == (KeepFull(), full)


def test_crop_is_taken_where_it_leads_by_more_than_the_full_image() -> None:
    full, certain, uncertain = _ranking(0.9, 0.8, 0.1), _ranking(0.2, 0.9, 0.1), _ranking(0.1, 0.62, 0.6)
    assert compute_gap(certain) > compute_gap(full) > compute_gap(uncertain)
    taken = apply_rule(Setting(gap_ratio=1.0), _look(certain, full), _POOL)
    assert (taken.ranking, isinstance(taken.decision, Crop)) == (certain, True)
    left = apply_rule(Setting(gap_ratio=1.0), _look(uncertain, full), _POOL)
    assert (left.ranking, left.decision) == (full, KeepFull())
    assert apply_rule(Setting(gap_ratio=0.1), _look(uncertain, full), _POOL).ranking is uncertain


def test_equal_leads_keep_the_full_image() -> None:
    full = _ranking(0.9, 0.8, 0.1)
    assert apply_rule(Setting(gap_ratio=1.0), _look(full, full), _POOL).decision == KeepFull()


@given(
    crop=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    full=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
    weight=st.sampled_from(WEIGHTS),
)
def test_fused_scores_are_the_weighted_mean_and_rank_the_pool(
    crop: list[float], full: list[float], weight: float
) -> None:
    fused = apply_rule(Setting(weight=weight), _look(_ranking(*crop), _ranking(*full)), _POOL)
    assert fused.ranking is not None
    wanted = [weight * a + (1 - weight) * b for a, b in zip(crop, full, strict=True)]
    assert fused.ranking.scores_K.tolist() == pytest.approx(wanted)
    outcome = compute_outcome(fused.ranking.scores_K, _POOL.relevance, _POOL.num_relevant)
    assert fused.ranking.outcome == outcome
    assert isinstance(fused.decision, Crop)


def test_weight_of_one_is_the_crop_alone() -> None:
    crop, full = _ranking(0.2, 0.9, 0.1), _ranking(0.9, 0.8, 0.1)
    fused = apply_rule(Setting(weight=1.0), _look(crop, full), _POOL)
    assert fused.ranking is not None
    assert fused.ranking.outcome == crop.outcome


# ---------------------------------------------------------------------------- choice


@pytest.mark.parametrize("name", RULES)
def test_choice_agrees_with_the_figures_of_the_table_and_is_the_best(world: FakeWorld, name: str) -> None:
    val, scorer = _val(world), _scorer(world)
    rule, source = RULES[name], _source(_val(world))
    chosen = choose_setting(rule, source, val, scorer)

    def measure(setting: Setting) -> tuple[float, float]:
        rows = build_rows(name, rank_by_rule(setting, source, val, scorer), val.queries, val.pools)
        full = rank_methods({"full": [(KeepFull(), None)] * len(val.queries)}, {}, {}, val, scorer)["full"]
        table = ResultTable([*rows, *full], val.pools)
        recall, harm = (table.compute_terms(name, metric) for metric in ("cond_recall_at_1", "harm_rate"))
        return recall[0].sum() / recall[1].sum(), harm[0].sum() / harm[1].sum()

    assert measure(chosen.setting) == pytest.approx((chosen.cond_recall_at_1, chosen.harm_rate))
    every = {setting: measure(setting) for setting in rule.settings}
    assert chosen.cond_recall_at_1 == pytest.approx(max(recall for recall, _ in every.values()))
    equals = [setting for setting in rule.settings if every[setting] == every[chosen.setting]]
    assert chosen.setting == equals[0]


def test_growth_is_chosen_where_boxes_are_too_small(world: FakeWorld) -> None:
    val, scorer = _val(world), _scorer(world)

    def shrink(query: Any) -> Choice:
        box = query.target_box
        width, height = box.x1 - box.x0, box.y1 - box.y0
        shrunk = Box(box.x0 + width / 4, box.y0 + height / 4, box.x1 - width / 4, box.y1 - height / 4)
        return Crop(shrunk), None

    def choose(choices: Sequence[Choice]) -> Setting:
        return choose_setting(RULES["base_grown"], _unforced(choices), val, scorer).setting

    chosen = choose([shrink(query) for query in val.queries])
    exact = choose([(Crop(query.target_box), None) for query in val.queries if query.target_box is not None])
    assert chosen.margin > exact.margin == 0.0


def test_region_is_what_the_policy_crops_or_would_crop(world: FakeWorld) -> None:
    val, scorer = _val(world), _scorer(world)
    source = _source(val)
    seen: set[str] = set()
    for margin in (0.0, 0.2):
        looks = take_looks(source, Reshaping(margin, is_square=False), val, scorer)
        for look, greedy, forced, query in zip(looks, source.greedy, source.forced, val.queries, strict=True):
            assert look.choice == greedy
            meant = greedy[0] if isinstance(greedy[0], Crop) else forced[0]
            seen.add(f"{type(greedy[0]).__name__}, {type(forced[0]).__name__}")
            if not isinstance(meant, Crop):
                assert look.region is look.crop is None
                continue
            assert look.region == grow_box(meant.box, margin)
            assert look.crop is not None
            (wanted,) = scorer.score_views([(query.query_id, look.region)])
            assert look.crop.scores_K.tolist() == wanted.scores_K.tolist()
    assert seen == {"Crop, Crop", "KeepFull, Crop", "Malformed, Malformed"}


def test_a_policy_that_is_never_forced_keeps_what_it_keeps(world: FakeWorld) -> None:
    val, scorer = _val(world), _scorer(world)
    for name, rule in RULES.items():
        for setting in rule.settings:
            ranked = rank_by_rule(setting, _unforced(_answer(val)), val, scorer)
            for row, (decision, _) in zip(ranked, _answer(val), strict=True):
                if isinstance(decision, KeepFull):
                    assert row.decision == KeepFull(), name


def test_only_our_policy_has_a_weight_for_what_it_keeps() -> None:
    for name, rule in RULES.items():
        kept = {setting.kept_weight for setting in rule.settings}
        assert kept == (set(KEPT_WEIGHTS) if name == "rgrpo_fused" else {None})
    fused = RULES["rgrpo_fused"].settings
    assert len(set(fused)) == len(fused) == len(WEIGHTS) * len(KEPT_WEIGHTS)
    # Of equals the first wins: the one that trusts the region least.
    assert (fused[0].kept_weight, fused[0].weight) == (0.0, min(WEIGHTS))


def _choose_kept_weight(region: FakeRanking, full: FakeRanking, relevance: tuple[bool, ...]) -> Setting:
    """Choose for one query that the policy keeps, where its region and the full image rank thus."""
    pool = replace(_POOL, relevance=relevance)

    class Planted:
        def score_views(self, views: Any) -> list[FakeRanking]:
            shown = [(full if box is None else region).scores_K for _, box in views]
            return [FakeRanking(compute_outcome(scores, pool.relevance, 1), scores) for scores in shown]

    source = Source([(KeepFull(), None)], [(Crop(_REGION), None)])
    return choose_setting(RULES["rgrpo_fused"], source, QuerySet([FakeQuery("q")], [pool]), Planted()).setting  # type: ignore[list-item]


def test_a_squared_box_is_square_in_pixels() -> None:
    (setting,) = [s for s in RULES["base_squared"].settings if s.margin == 0.0]
    crop = setting.reshaping.apply(Box(0.4, 0.2, 0.6, 0.8), 40, 30)  # 8 x 18 px
    assert (crop.x1 - crop.x0) * 40 == pytest.approx(18)
    assert (crop.y0, crop.y1) == pytest.approx((0.2, 0.8))
    assert all(s.is_square for s in RULES["base_squared"].settings)
    assert not any(s.is_square for name, rule in RULES.items() if name != "base_squared" for s in rule.settings)


def test_val_gives_kept_regions_a_weight_where_that_wins_and_none_where_it_does_not() -> None:
    region, full = _ranking(0.2, 0.9, 0.1), _ranking(0.9, 0.8, 0.1)
    # The region alone ranks the second candidate first. 0.1 a + 0.9 b: (0.83, 0.81), (0.76, 0.82), ...
    assert _choose_kept_weight(region, full, (False, True, False)).kept_weight == 0.2
    assert _choose_kept_weight(region, full, (True, False, False)).kept_weight == 0.0
    assert _choose_kept_weight(region, full, (False, False, True)).kept_weight == 0.0


def test_of_equal_settings_the_less_harmful_wins() -> None:
    # One query is won and one lost by the second setting; the first wins none and loses none of equal recall.
    rule = Rule("base", (Setting(weight=1.0), Setting(weight=0.1)))
    pools = [
        replace(_POOL, query_id="won", relevance=(False, True, False)),
        replace(_POOL, query_id="lost", relevance=(True, False, False)),
    ]
    crop, full = _ranking(0.2, 0.9, 0.1), _ranking(0.9, 0.8, 0.1)

    class Planted:
        def score_views(self, views: Any) -> list[FakeRanking]:
            by_id = {pool.query_id: pool for pool in pools}
            shown = [(by_id[query_id], (full if box is None else crop).scores_K) for query_id, box in views]
            return [FakeRanking(compute_outcome(scores, pool.relevance, 1), scores) for pool, scores in shown]

    queries = QuerySet([FakeQuery("won"), FakeQuery("lost")], pools)  # type: ignore[list-item]
    chosen = choose_setting(rule, _unforced([(Crop(_REGION), None)] * 2), queries, Planted())
    assert chosen.setting.weight == 0.1
    assert (chosen.cond_recall_at_1, chosen.harm_rate) == (0.5, 0.0)


class FakeQuery:
    """A query as far as the rules read it."""

    def __init__(self, query_id: str) -> None:
        self.query_id = query_id
        self.width_px, self.height_px = 40, 30


def test_nothing_is_chosen_without_a_positive(world: FakeWorld) -> None:
    val = _val(world)
    barren = QuerySet(val.queries, [replace(pool, relevance=(False,) * len(pool.doc_ids)) for pool in val.pools])
    with pytest.raises(ValueError, match="positive"):
        choose_setting(RULES["base_grown"], _source(val), barren, _scorer(world))
    answers = {name: _answer(val) for name in ("base", "sft", "rgrpo")}
    for queries in (barren, QuerySet([], [])):
        answered = {name: choices[: len(queries.queries)] for name, choices in answers.items()}
        found = choose_on_val(
            answered,
            {"rgrpo": answered["rgrpo"]},
            queries,
            _scorer(world),
            Bootstrap(PARAMS.evaluate, 7, queries.queries),
        )
        assert (found.settings, found.best_rule, found.best_rgrpo) == ({}, None, None)
        left_out = found.as_json([name for name in METHODS if name not in RULES])["left_out"]
        assert left_out == dict.fromkeys(RULES, NO_VAL)


def test_best_of_equals_is_the_first() -> None:
    def figures(**means: float) -> dict[str, Any]:
        return {name: {"cond_recall_at_1": Interval(mean, mean, mean, 0)} for name, mean in means.items()}

    assert pick_best(TRAINED, figures(rgrpo=0.5, rgrpo_fused=0.5)) == "rgrpo"
    assert pick_best(TRAINED, figures(rgrpo=0.5, rgrpo_fused=0.6)) == "rgrpo_fused"
    assert pick_best(UNTRAINED, figures(base=0.5, base_grown=0.5, full=0.4)) == "base_grown"
    assert pick_best(UNTRAINED, figures(base=0.5, base_grown=0.5, full=0.6)) == "full"
    assert pick_best(UNTRAINED, {}) is None


def test_of_equally_good_rules_the_less_harmful_is_the_best() -> None:
    def figures(**values: tuple[float, float]) -> dict[str, Any]:
        return {
            name: {
                metric: Interval(mean, mean, mean, 0)
                for metric, mean in zip(("cond_recall_at_1", "harm_rate"), pair, strict=True)
            }
            for name, pair in values.items()
        }

    found = figures(base_grown=(0.8, 0.02), base_grown_fused=(0.8, 0.01), base=(0.7, 0.0))
    assert pick_best(UNTRAINED, found, least="harm_rate") == "base_grown_fused"
    assert pick_best(UNTRAINED, found) == "base_grown"


# ---------------------------------------------------------------------------- report


def test_report_names_what_val_chose_and_compares_with_it(world: FakeWorld, report: dict[str, Any]) -> None:
    assert set(report["rules"]) == set(RULES)
    on_val = {name: values["cond_recall_at_1"]["mean"] for name, values in report["val"]["methods"].items()}
    assert set(on_val) == {"full", "base", "sft", "rgrpo", *RULES}
    assert on_val[report["best_rule"]] == max(on_val[name] for name in UNTRAINED)
    harm = {name: values["harm_rate"]["mean"] for name, values in report["val"]["methods"].items()}
    equals = [name for name in UNTRAINED if on_val[name] == on_val[report["best_rule"]]]
    assert harm[report["best_rule"]] == min(harm[name] for name in equals)
    assert on_val[report["best_rgrpo"]] == max(on_val[name] for name in TRAINED)
    for name, chosen in report["rules"].items():
        assert chosen["val_cond_recall_at_1"] == pytest.approx(on_val[name])
    test = {name: values["cond_recall_at_1"]["mean"] for name, values in report["methods"].items()}
    found = report["paired"]["rgrpo_minus_best_rule"]["cond_recall_at_1"]["mean"]
    assert found == pytest.approx(test[report["best_rgrpo"]] - test[report["best_rule"]])
    rows = load_results(world.workspace.evaluation_dir / "val_results.parquet")
    assert len(rows) == len(on_val) * len(world.val_queries)
    assert report["left_out"] == {}


def test_test_pools_have_no_say_in_the_choice(
    world: FakeWorld, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world.workspace.pools_dir / "pools.parquet"
    turned = [replace(pool, relevance=pool.relevance[::-1]) for pool in world.pools]
    save_pools(path, [*turned, *world.val_pools])
    evaluate.run(PARAMS, world.workspace, null_run())
    other = read_json(world.workspace.evaluation_dir / "report.json")
    save_pools(path, [*world.pools, *world.val_pools])
    evaluate.run(PARAMS, world.workspace, null_run())
    assert other["methods"] != report["methods"]
    for part in ("rules", "best_rule", "best_rgrpo", "val"):
        assert other[part] == report[part]


def test_without_val_or_targets_methods_are_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build_fake_world(tmp_path, monkeypatch)
    blank = [replace(query, target_box=None) for query in world.queries]
    save_queries(world.workspace.tables_dir / "queries.parquet", blank)
    figures = ask_and_evaluate(PARAMS, world.workspace)
    report_stage.run(PARAMS, world.workspace, null_run())
    report = read_json(world.workspace.evaluation_dir / "report.json")
    assert report["left_out"] == dict.fromkeys(RULES, NO_VAL) | {"perfect": NO_TARGET}
    assert set(report["methods"]) == set(METHODS) - set(report["left_out"])
    assert report["best_rule"] is report["best_rgrpo"] is None
    assert report["paired"]["rgrpo_minus_best_rule"] == {"cond_recall_at_1": None, "mrr": None}
    assert not any(name.startswith(("val.", "rgrpo_minus_best_rule")) for name in figures)
    page = (world.workspace.report_dir / "report.html").read_text()
    assert NO_VAL in page


def test_perfect_box_keeps_the_full_image_where_no_target_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build_fake_world(tmp_path, monkeypatch)
    some = [replace(q, target_box=None) if n % 2 else q for n, q in enumerate(world.queries)]
    save_queries(world.workspace.tables_dir / "queries.parquet", [*some, *world.val_queries])
    ask_and_evaluate(PARAMS, world.workspace)
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    perfect = {row.query_id: row.box for row in rows if row.method == "perfect"}
    assert perfect == {query.query_id: query.target_box for query in some}


# ---------------------------------------------------------------------------- another world


def _lend(world: FakeWorld) -> Workspace:
    """Another world's workspace, with the queries of this one but none of val."""
    folder = world.workspace.artifacts_dir / "worlds" / "9"
    other = Workspace(
        data_dir=world.workspace.data_dir,
        artifacts_dir=folder,
        policies_dir=world.workspace.artifacts_dir,
    )
    save_queries(other.tables_dir / "queries.parquet", world.queries)
    save_pools(other.pools_dir / "pools.parquet", world.pools)
    for name in ("documents", "qrels"):
        (other.tables_dir / f"{name}.parquet").write_bytes(
            (world.workspace.tables_dir / f"{name}.parquet").read_bytes()
        )
    return other


def test_another_world_takes_over_what_the_main_run_chose(world: FakeWorld, report: dict[str, Any]) -> None:
    other = _lend(world)
    ask_and_evaluate(PARAMS, other)
    found = read_json(other.evaluation_dir / "report.json")
    for part in ("rules", "best_rule", "best_rgrpo", "left_out"):
        assert found[part] == report[part]
    assert found["val"] == report["val"] | {"carried_over": True}
    assert found["methods"] == report["methods"]
    assert found["paired"] == report["paired"]
    assert found["behaviour"]["threshold"]["chosen"] == report["behaviour"]["threshold"]["chosen"]
    assert found.keys() == report.keys()
    assert load_results(other.evaluation_dir / "val_results.parquet") == []


def test_another_world_ranks_kept_queries_by_the_weight_that_it_took_over(
    world: FakeWorld, report: dict[str, Any]
) -> None:
    """The lender's numbers count, not what would have been chosen, so any number must show in the rows."""
    path = world.workspace.evaluation_dir / "report.json"
    with_positive = {pool.query_id for pool in world.pools if pool.has_positive}  # the others' scores never move
    kept = {query.query_id for query in world.queries if query.question == "keep it"} & with_positive
    assert kept
    try:
        for kept_weight in (0.0, 0.6):
            changed = report["rules"]["rgrpo_fused"] | {"weight": 0.7, "kept_weight": kept_weight}
            path.write_text(json.dumps(report | {"rules": report["rules"] | {"rgrpo_fused": changed}}))
            other = _lend(world)
            ask_and_evaluate(PARAMS, other)
            found = read_json(other.evaluation_dir / "report.json")["rules"]["rgrpo_fused"]
            assert (found["weight"], found["kept_weight"]) == (0.7, kept_weight)
            rows = load_results(other.evaluation_dir / "results.parquet")
            fused = {row.query_id: row for row in rows if row.method == "rgrpo_fused"}
            boxes = {fused[query_id].box for query_id in kept}
            assert boxes == ({None} if kept_weight == 0.0 else {Box(0.5, 0.5, 0.8, 0.8)})
            full = {row.query_id: row for row in rows if row.method == "full"}
            assert all((fused[name].scores == full[name].scores) == (kept_weight == 0.0) for name in kept)
    finally:
        path.write_text(json.dumps(report))


def test_choices_of_another_policy_are_refused(world: FakeWorld, tmp_path: Path) -> None:
    path = world.workspace.evaluation_dir / "report.json"
    digest = compute_model_digest(world.workspace.policy_dir)
    assert carry_choices(path, digest).settings.keys() == RULES.keys()
    with pytest.raises(StageError, match="another policy"):
        carry_choices(path, "0" * 64)
    with pytest.raises(StageError, match="run evaluate first"):
        carry_choices(tmp_path / "report.json", digest)
