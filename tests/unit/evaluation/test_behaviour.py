"""How the policy behaves: what a threshold may see, what selection may read, what another scorer finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Params
from pipeline.core.statistics.risk_control import RiskLimit
from pipeline.evaluation.answers.asking import list_cropped
from pipeline.evaluation.figures import Bootstrap, ResultTable
from pipeline.evaluation.measures import CHOICE_METRICS, rank_choices
from pipeline.evaluation.methods import QuerySet, choose_full
from pipeline.evaluation.probes.behaviour import (
    RANKED_METHODS,
    TRANSFERRED_METHODS,
    SecondScorer,
    probe_transfer,
    split_by_rank,
)
from pipeline.evaluation.probes.selection import (
    compute_gap,
    pick_median_boxes,
    pick_widest_gaps,
    probe_selection,
)
from pipeline.evaluation.probes.threshold import (
    THRESHOLDS,
    apply_threshold,
    probe_threshold,
    trace_curve,
)
from pipeline.files.store import load_results, read_json
from pipeline.types import Box, Crop, KeepFull, Malformed, Pool
from tests.fakes.evaluation_fakes import (
    PARAMS,
    FakeAnswer,
    FakePolicy,
    FakeScorer,
    FakeWorld,
    ask_and_evaluate,
    build_fake_world,
)

_LIMIT = RiskLimit(bound=0.1, level=0.05)
_POLICY = FakePolicy("policy")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("behaviour"), monkeypatch)
        ask_and_evaluate(PARAMS, world.workspace)
        yield world


@pytest.fixture
def behaviour(world: FakeWorld) -> dict[str, Any]:
    return read_json(world.workspace.evaluation_dir / "report.json")["behaviour"]


def _test_set(world: FakeWorld) -> QuerySet:
    return QuerySet(world.queries, world.pools)


def _val_set(world: FakeWorld) -> QuerySet:
    return QuerySet(world.val_queries, world.val_pools)


def _bootstrap(world: FakeWorld) -> Bootstrap:
    return Bootstrap(PARAMS.evaluate, 7, world.queries)


def _force(queries: QuerySet) -> list[FakeAnswer]:
    questions = [query.question for query in queries.queries]
    return _POLICY.decide([], questions, force_region=True)


def _answer(queries: QuerySet) -> list[FakeAnswer]:
    return _POLICY.decide([], [query.question for query in queries.queries])


def _choose(queries: QuerySet) -> list[Any]:
    return [(answer.decision, answer.completion) for answer in _answer(queries)]


def _run(world: FakeWorld, num_samples: int = PARAMS.answer.num_samples, **evaluate_section: Any) -> dict[str, Any]:
    section = PARAMS.evaluate.model_dump() | evaluate_section
    tree = {"answer": {"num_samples": num_samples}, "evaluate": section, "search": {"scales": [0.4], "stride": 0.5}}
    ask_and_evaluate(Params.model_validate(tree), world.workspace)
    changed: dict[str, Any] = read_json(world.workspace.evaluation_dir / "report.json")["behaviour"]
    ask_and_evaluate(PARAMS, world.workspace)
    return changed


# ---------------------------------------------------------------------------- by baseline rank


def test_buckets_hold_every_query_once_and_only_its_crops(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    full = {row.query_id: row for row in rows if row.method == "full"}
    assert set(behaviour["by_baseline_rank"]) == set(RANKED_METHODS)
    for method, buckets in behaviour["by_baseline_rank"].items():
        assert list(buckets) == ["1", "2-3", "4-10", "11+", "none"]
        assert sum(bucket["num_queries"] for bucket in buckets.values()) == len(world.queries)
        cropped = [row for row in rows if row.method == method and row.decision == "region"]
        assert sum(bucket["num_cropped"] for bucket in buckets.values()) == len(cropped)
        second = [row for row in cropped if full[row.query_id].first_rank in (2, 3)]
        if second:
            bucket = buckets["2-3"]
            rises = sum(row.reciprocal_rank > full[row.query_id].reciprocal_rank for row in second)
            assert bucket["num_cropped"] == len(second)
            assert bucket["improved_when_cropped"]["mean"] == pytest.approx(rises / len(second))
            firsts = sum(row.first_rank == 1 for row in second)
            assert bucket["first_when_cropped"]["mean"] == pytest.approx(firsts / len(second))


def test_what_never_crops_has_no_success_when_cropping(behaviour: dict[str, Any]) -> None:
    for bucket in behaviour["by_baseline_rank"]["base"].values():
        assert bucket["num_cropped"] == 0
        assert bucket["first_when_cropped"] is None
        assert bucket["improved_when_cropped"] is None


def test_no_view_improves_on_a_first_place_or_on_an_empty_pool(world: FakeWorld) -> None:
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    buckets = split_by_rank(ResultTable(rows, world.pools), "rgrpo", _bootstrap(world))
    for name in ("1", "none"):
        assert buckets[name].num_cropped > 0
        assert buckets[name].improved_when_cropped is not None
        assert buckets[name].improved_when_cropped.mean == 0.0


# ---------------------------------------------------------------------------- threshold


def test_threshold_above_every_p_keeps_every_image(world: FakeWorld) -> None:
    test = _test_set(world)
    answers = _force(test)
    last = trace_curve(test, answers, FakeScorer(world.queries, world.pools))[-1]
    assert last.threshold > 1.0
    assert last.rc_rate == last.harm_rate == 0.0
    assert all(isinstance(decision, KeepFull) for decision, _ in apply_threshold(THRESHOLDS[-1], answers))


def test_threshold_zero_crops_wherever_there_is_a_box(world: FakeWorld) -> None:
    test = _test_set(world)
    answers = _force(test)
    first = trace_curve(test, answers, FakeScorer(world.queries, world.pools))[0]
    assert first.threshold == 0.0
    assert first.rc_rate == sum(isinstance(answer.decision, Crop) for answer in answers) / len(answers)


def test_curve_agrees_with_the_figures_at_its_thresholds(world: FakeWorld) -> None:
    test, scorer = _test_set(world), FakeScorer(world.queries, world.pools)
    answers = _force(test)
    for point in trace_curve(test, answers, scorer)[::7]:
        table = rank_choices({"t": apply_threshold(point.threshold, answers)}, test, scorer)
        for metric in ("rc_rate", "harm_rate", "cond_recall_at_1"):
            numerator_Q, denominator_Q = table.compute_terms("t", metric)
            assert getattr(point, metric) == pytest.approx(numerator_Q.sum() / denominator_Q.sum())


def test_choice_never_sees_test(world: FakeWorld) -> None:
    val, test = _val_set(world), _test_set(world)
    scorer = FakeScorer([*world.queries, *world.val_queries], [*world.pools, *world.val_pools])
    answers = _force(test)
    wrong = [replace(answer, p_region=1.0 - answer.p_region) for answer in answers]
    one, other = (
        probe_threshold(val, _force(val), test, replies, scorer, _LIMIT, _bootstrap(world))
        for replies in (answers, wrong)
    )
    assert one.chosen == other.chosen
    assert one.val_curve == other.val_curve
    assert one.test_curve != other.test_curve


def test_without_val_queries_no_threshold_is_chosen(world: FakeWorld) -> None:
    test = _test_set(world)
    scorer = FakeScorer(world.queries, world.pools)
    found = probe_threshold(QuerySet([], []), [], test, _force(test), scorer, _LIMIT, _bootstrap(world))
    assert found.chosen is None
    assert found.val is None
    assert found.val_curve == []
    assert set(found.test) == set(CHOICE_METRICS)
    assert set(found.test.values()) == {None}
    assert len(found.test_curve) == len(THRESHOLDS)


def test_forced_nonsense_is_a_miss_not_a_crop(world: FakeWorld) -> None:
    test = _test_set(world)
    answers = [FakeAnswer(Malformed("no box"), "<tool_call>", 0.9) for _ in test.queries]
    point = trace_curve(test, answers, FakeScorer(world.queries, world.pools))[0]
    assert point.rc_rate == 0.0
    assert point.cond_recall_at_1 == 0.0
    assert point.harm_rate > 0.0


def test_bound_on_harm_moves_the_threshold(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    strict = _run(world, harm_bound=0.0)["threshold"]
    loose = _run(world, harm_bound=1.0)["threshold"]
    assert strict["harm_bound"] == 0.0
    assert strict["chosen"] > 1.0 > loose["chosen"]
    assert strict["val"] == {"num_pictures": len(world.val_queries), "num_harmed": 0, "upper_limit": 0.0}
    assert loose["val"]["num_harmed"] > 0
    assert strict["val_curve"] == loose["val_curve"] == behaviour["threshold"]["val_curve"]


def test_level_of_the_bound_moves_the_threshold(world: FakeWorld) -> None:
    # One of ten val pictures is harmed: that shows a harm below 39.5 % at level 5 %, but only below 50.5 % at 1 %.
    sure_enough, stricter = (_run(world, harm_bound=0.4, harm_level=level)["threshold"] for level in (0.05, 0.01))
    assert (sure_enough["harm_level"], stricter["harm_level"]) == (0.05, 0.01)
    assert sure_enough["chosen"] < 1.0 < stricter["chosen"]


def test_pictures_are_harmed_once_however_many_queries_share_them(world: FakeWorld) -> None:
    test, scorer = _test_set(world), FakeScorer(world.queries, world.pools)
    answers = [FakeAnswer(Malformed("no box"), "<tool_call>", 0.9) for _ in test.queries]
    apart = trace_curve(test, answers, scorer)[0]
    shared = QuerySet([replace(query, image_path="images/q00.jpg") for query in test.queries], test.pools)
    together = trace_curve(shared, answers, scorer)[0]
    assert apart.num_harmed == round(apart.harm_rate * len(test.queries)) > 1
    assert together.num_harmed == 1
    assert together.harm_rate == apart.harm_rate


# ---------------------------------------------------------------------------- selection


def _probe_selection(world: FakeWorld, num_samples: int = 4) -> Any:
    test, greedy = _test_set(world), _choose(_test_set(world))
    scorer = FakeScorer(world.queries, world.pools)
    cropped = list_cropped(test.queries, _answer(test))
    drawn = _POLICY.sample_regions([], [query.question for query in cropped], num_samples=num_samples, seeds=[])
    samples = {query.query_id: answers for query, answers in zip(cropped, drawn, strict=True)}
    return probe_selection(test, greedy, samples, scorer, num_samples, _bootstrap(world))


def test_greedy_of_the_selection_is_the_method_of_the_main_table(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    main = read_json(world.workspace.evaluation_dir / "report.json")["methods"]["rgrpo"]
    assert behaviour["selection"]["methods"]["greedy"] == {name: main[name] for name in CHOICE_METRICS}
    assert set(behaviour["selection"]["methods"]) == {"greedy", "widest_gap", "median_box"}
    rates = [values["rc_rate"] for values in behaviour["selection"]["methods"].values()]
    assert rates[0] == rates[1] == rates[2]


def test_malformed_samples_are_counted_and_left_out(world: FakeWorld) -> None:
    num_cropped = len(list_cropped(world.queries, _answer(_test_set(world))))
    assert _probe_selection(world, num_samples=3).num_malformed_samples == num_cropped
    only_malformed = pick_median_boxes({"q": []})
    assert only_malformed == pick_widest_gaps({"q": []}, FakeScorer([], [])) == {}


def test_greedy_box_stays_where_every_sample_is_malformed(world: FakeWorld) -> None:
    test, greedy = _test_set(world), _choose(_test_set(world))
    bad = [FakeAnswer(Malformed("no box"), "<tool_call>", 0.9)] * 2
    samples = {query.query_id: bad for query in list_cropped(test.queries, _answer(test))}
    found = probe_selection(test, greedy, samples, FakeScorer(world.queries, world.pools), 2, _bootstrap(world))
    assert found.methods["widest_gap"] == found.methods["median_box"] == found.methods["greedy"]
    assert found.num_malformed_samples == 2 * len(samples)


def test_widest_gap_reads_scores_and_never_relevance(world: FakeWorld) -> None:
    boxes = {query.query_id: [Box(0.1, 0.1, 0.5, 0.5), query.target_box or Box(0, 0, 1, 1)] for query in world.queries}

    class Blindfolded(FakeScorer):
        """Gives the scores of the true pools, with relevance drawn anew."""

        def __init__(self, pools: Sequence[Pool], seed: int) -> None:
            super().__init__(world.queries, world.pools)
            rng = np.random.default_rng(seed)
            self._drawn = {pool.query_id: tuple(rng.permutation(pool.relevance).tolist()) for pool in pools}

        def score_views(self, views: Sequence[tuple[str, Box | None]]) -> Any:
            scored = super().score_views(views)
            return [
                replace(view, outcome=_rank(view.scores_K, self._drawn[query_id]))
                for view, (query_id, _) in zip(scored, views, strict=True)
            ]

    picked = [pick_widest_gaps(boxes, Blindfolded(world.pools, seed)) for seed in range(3)]
    assert picked[0] == picked[1] == picked[2]
    assert len({box for row in boxes.values() for box in row} & set(picked[0].values())) > 1


def _rank(scores_K: Any, relevance: tuple[bool, ...]) -> Any:
    from pipeline.core.ranking import compute_outcome

    return compute_outcome(scores_K, relevance, sum(relevance) or 1)


def test_widest_gap_is_the_widest_by_hand(world: FakeWorld) -> None:
    scorer = FakeScorer(world.queries, world.pools)
    query = next(query for query, pool in zip(world.queries, world.pools, strict=True) if pool.relevance[0])
    assert query.target_box is not None
    boxes = [Box(0.0, 0.0, 0.1, 0.1), query.target_box, Box(0.2, 0.2, 1.0, 1.0)]
    gaps = [compute_gap(view) for view in scorer.score_views([(query.query_id, box) for box in boxes])]
    assert pick_widest_gaps({query.query_id: boxes}, scorer)[query.query_id] == boxes[int(np.argmax(gaps))]
    assert max(gaps) > min(gaps)


_EDGES = st.tuples(*[st.integers(0, 27)] * 2, *[st.integers(1, 28)] * 2)
_BOXES = _EDGES.map(lambda e: Box(e[0] / 28, e[1] / 28, max(e[2], e[0] + 1) / 28, max(e[3], e[1] + 1) / 28))


@given(box=_BOXES, count=st.integers(1, 9))
def test_median_of_equal_boxes_is_that_box(box: Box, count: int) -> None:
    assert pick_median_boxes({"q": [box] * count}) == {"q": box}


@given(boxes=st.lists(_BOXES, min_size=1, max_size=9))
def test_median_of_any_boxes_is_a_box_that_order_does_not_change(boxes: list[Box]) -> None:
    assert pick_median_boxes({"q": boxes}) == pick_median_boxes({"q": boxes[::-1]})


def test_median_ignores_one_box_far_off() -> None:
    near = [Box(0.10, 0.1, 0.50, 0.5), Box(0.12, 0.1, 0.52, 0.5)]
    assert pick_median_boxes({"q": [*near, Box(0.9, 0.9, 1.0, 1.0)]})["q"].x0 == 0.12


def test_number_of_samples_changes_the_selection(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    fewer = _run(world, num_samples=1)["selection"]
    assert fewer["num_samples"] == 1
    assert fewer["num_malformed_samples"] == 0 < behaviour["selection"]["num_malformed_samples"]
    assert fewer["methods"]["median_box"] != behaviour["selection"]["methods"]["median_box"]


# ---------------------------------------------------------------------------- transfer


def test_same_scorer_gives_the_figures_of_the_main_table(world: FakeWorld) -> None:
    test = _test_set(world)
    choices = {"full": choose_full(world.queries), "base": choose_full(world.queries), "rgrpo": _choose(test)}
    same = SecondScorer("same", "clip", FakeScorer(world.queries, world.pools))
    found = probe_transfer(choices, test, same, _bootstrap(world))
    main = read_json(world.workspace.evaluation_dir / "report.json")
    for method in TRANSFERRED_METHODS:
        for metric in CHOICE_METRICS:
            interval, wanted = found.methods[method][metric], main["methods"][method][metric]
            assert (interval is None) == (wanted is None)
            assert interval is None or interval.mean == wanted["mean"]
    assert found.rgrpo_minus_full is not None
    assert found.rgrpo_minus_full.p_value == main["paired"]["rgrpo_minus_full"]["cond_recall_at_1"]["p_value"]


def test_second_scorer_is_named_and_may_be_left_out(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    assert behaviour["transfer"]["scorer"] == "demo/models/tiny-siglip"
    assert behaviour["transfer"]["model_type"] == "siglip"
    assert set(behaviour["transfer"]["methods"]) == set(TRANSFERRED_METHODS)
    assert "transfer" not in _run(world, transfer_scorer=PARAMS.scorer.path)
    assert _run(world, transfer_scorer="elsewhere")["transfer"]["scorer"] == "elsewhere"


def test_weaker_scorer_gains_less(world: FakeWorld, behaviour: dict[str, Any]) -> None:
    first = read_json(world.workspace.evaluation_dir / "report.json")["methods"]
    second = behaviour["transfer"]["methods"]
    assert second["full"]["cond_recall_at_1"] == first["full"]["cond_recall_at_1"]
    assert second["rgrpo"]["cond_recall_at_1"]["mean"] < first["rgrpo"]["cond_recall_at_1"]["mean"]
