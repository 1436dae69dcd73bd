"""The result table's number formats, the headline, which queries the gallery shows, and the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.figures import BEST_PAIR, METRICS
from pipeline.evaluation.methods import METHODS
from pipeline.files.store import load_documents, load_qrels, load_results, read_json
from pipeline.report import table
from pipeline.report.gallery import Card, build_panels, list_cards, pick_cards
from pipeline.report.headline import write_headline
from pipeline.report.page import ReportInputs, render_page
from pipeline.report.search.won_back import SearchTally
from tests.fakes import report_fakes as fakes
from tests.fakes.evaluation_fakes import ask_and_evaluate, build_fake_world


def test_every_method_and_metric_has_a_name() -> None:
    assert tuple(table.METHOD_LABELS) == tuple(table.METHOD_NOTES) == METHODS
    assert tuple(method for group in table.METHOD_GROUPS for method in group) == METHODS
    assert table.BEST_PAIR == BEST_PAIR
    assert {column.metric for column in table.COLUMNS} == set(METRICS)
    assert set(METRICS) > table.DECISION_METRICS


def test_numbers_read_as_people_expect() -> None:
    interval = {"mean": 0.4475, "low": 0.4, "high": 0.5}
    assert table.format_mean(interval, "share") == "44.8 %"
    assert table.format_range(interval, "share") == "40.0 to 50.0"
    assert table.format_mean(interval, "score") == "0.448"
    assert table.format_mean(None, "share") == table.NO_VALUE
    assert table.format_range(None, "share") == ""


def test_difference_tells_sign_interval_and_p() -> None:
    difference = {"mean": 0.031, "low": -0.012, "high": 0.05, "p_value": 0.0021}
    assert table.format_difference(difference, "share") == "+3.1 points (-1.2 to +5.0, p = 0.0021)"
    assert table.format_difference(None, "share") == table.NO_VALUE


def _build_pair(number: int, before: int | None, after: int | None, decision: str = "region") -> tuple:
    name = f"q{number}"
    rows = (fakes.build_row(name, "full", before, "full"), fakes.build_row(name, "rgrpo", after, decision))
    return fakes.build_query(name), *rows


def _list_cards(*pairs: tuple) -> tuple[list[Card], object]:
    queries, before, after = zip(*pairs, strict=True)
    return list_cards(queries, before, after)


def test_every_test_query_is_counted_once() -> None:
    cards, tally = _list_cards(
        _build_pair(0, 5, 1),
        _build_pair(1, 1, 4),
        _build_pair(2, 2, None, "malformed"),
        _build_pair(3, 3, 3, "full"),
        _build_pair(4, 2, 2),
        _build_pair(5, None, None),
    )
    assert [card.kind for card in cards] == ["win", "loss", "loss", "kept"]
    assert tally.num_by_kind == {"win": 1, "loss": 2, "kept": 1}
    assert (tally.num_same_rank, tally.num_without_positive) == (1, 1)


def test_gallery_picks_the_clearest_and_fills_up_where_losses_are_few() -> None:
    pairs = [_build_pair(n, n + 2, 1) for n in range(10)]
    pairs += [_build_pair(10, 1, 2)]
    pairs += [_build_pair(20 + n, 3, 3, "full") for n in range(10)]
    cards, _ = _list_cards(*pairs)
    picked = pick_cards(cards, num_each=4)
    kinds = [card.kind for card in picked]
    assert {kind: kinds.count(kind) for kind in ("win", "loss", "kept")} == {"win": 7, "loss": 1, "kept": 4}
    assert picked[0].query.query_id == "q9"


def test_abstentions_are_spread_over_the_table() -> None:
    cards, _ = _list_cards(*(_build_pair(n, 3, 3, "full") for n in range(100)))
    numbers = [int(card.query.query_id[1:]) for card in pick_cards(cards, num_each=2)]
    assert len(set(numbers)) == 6
    assert min(numbers) < 20 and max(numbers) > 75


def _build_report(*, low: float, high: float, best_rule: str | None = "base_grown") -> dict:
    def build_row(share: float) -> dict:
        return {"cond_recall_at_1": fakes.build_interval(share), "harm_rate": fakes.build_interval(0.1)}

    policy = {
        **build_row(0.6),
        "harm_given_first": fakes.build_interval(0.2),
        "malformed_rate": {"mean": 0.05, "low": 0.0, "high": 0.1},
        "headroom": fakes.build_interval(0.4),
    }
    difference = {"mean": 0.3, "low": low, "high": high, "p_value": 0.1}
    methods = {
        "full": build_row(0.3),
        "base": build_row(0.55),
        "base_grown": build_row(0.58),
        "rgrpo": policy,
        "rgrpo_fused": build_row(0.62),
        "oracle": build_row(0.9),
    }
    return {
        "num_queries": 40,
        "num_with_positive": 30,
        "best_rule": best_rule,
        "best_rgrpo": best_rule and "rgrpo_fused",
        "methods": methods,
        "paired": {
            "rgrpo_minus_best_rule": {"cond_recall_at_1": difference if best_rule else None},
            "rgrpo_minus_full": {"cond_recall_at_1": difference},
        },
    }


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [(0.1, 0.5, "more answers"), (-0.5, -0.1, "fewer answers"), (-0.1, 0.5, "No clear difference")],
)
def test_headline_says_no_more_than_the_interval(low: float, high: float, sentence: str) -> None:
    result = write_headline(_build_report(low=low, high=high)).result
    assert sentence in result
    assert "the best rule (base, grown)" in result
    assert "r-GRPO, fused" in result
    assert "he trained policy with a rule on top" in result  # whose figure it is
    assert "r-GRPO 60.0 %" in result.replace("\u00a0", " ")  # and what the policy has without it


def test_headline_speaks_of_the_policy_alone_where_that_is_the_better_one() -> None:
    report = _build_report(low=0.1, high=0.5) | {"best_rgrpo": "rgrpo"}
    headline = write_headline(report)
    assert headline.result.startswith("The trained policy ranks more answers first")
    assert "fused" not in headline.result + " ".join(headline.shortfalls)


def test_page_says_plainly_what_the_fused_scores_are() -> None:
    report = _build_report(low=0.1, high=0.5)
    line = write_headline(report).shortfalls[1]
    assert line.startswith("r-GRPO, fused is not the policy alone: a rule on top")
    assert line.endswith("r-GRPO by its own view stands +2.0 points to the best rule.")
    for method in ("rgrpo", "base_grown"):  # test queries without any positive
        report["methods"][method]["cond_recall_at_1"] = None
    report["paired"]["rgrpo_minus_best_rule"]["cond_recall_at_1"] = None
    assert write_headline(report).shortfalls[1].endswith("weights chosen on val.")
    assert "a rule on top of r-GRPO" in table.METHOD_NOTES["rgrpo_fused"]


def test_both_weights_of_the_fused_scores_are_said() -> None:
    numbers = {"margin": 0.0, "is_square": False, "gap_ratio": None, "weight": 0.7}
    assert table.describe_setting(numbers | {"kept_weight": None}) == "box not grown; scores 70 % crop, 30 % full image"
    text = table.describe_setting(numbers | {"kept_weight": 0.3})
    assert text.endswith("; where it keeps that 30 % forced region, 70 % full image")
    assert "0 % forced region, 100 % full image" in table.describe_setting(numbers | {"kept_weight": 0.0})


def test_headline_falls_back_on_the_full_image_and_says_so() -> None:
    headline = write_headline(_build_report(low=0.1, high=0.5, best_rule=None))
    assert "more answers first than the full image" in headline.result
    assert "val could not choose one" in headline.shortfalls[0]


def test_headline_names_what_falls_short() -> None:
    lines = " ".join(write_headline(_build_report(low=0.1, high=0.5)).shortfalls).replace("\u00a0", " ")
    assert "r-GRPO, fused minus best rule (base, grown) is +30.0 points (+10.0 to +50.0" in lines
    assert "Harm: 4 of 40 (10.0 % [0.0 to 20.0])" in lines
    assert "Malformed: 2 of 40" in lines
    assert "40.0 % [30.0 to 50.0] of the oracle's gain" in lines
    assert "than base VLM" in lines
    assert "full image (" not in lines
    assert "oracle (ceiling)" not in lines


def test_page_holds_the_gallery_and_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = build_fake_world(tmp_path, monkeypatch)
    ask_and_evaluate(fakes.NOT_SEARCHED, world.workspace)
    rows = load_results(world.workspace.evaluation_dir / "results.parquet")
    before, after = ([row for row in rows if row.method == method] for method in ("full", "rgrpo"))
    cards, tally = list_cards(world.queries, before, after)
    won_back = [Card(kind="won_back", query=card.query, before=card.before, after=card.after) for card in cards[:1]]
    picked = [*pick_cards(cards, num_each=2), *won_back]
    tables = world.workspace.tables_dir
    documents = {d.doc_id: d for d in load_documents(tables / "documents.parquet")}
    relevant = {(qrel.query_id, qrel.doc_id) for qrel in load_qrels(tables / "qrels.parquet")}
    panels = build_panels(picked, relevant, documents, world.workspace.data_dir, max_pixels=10_000)
    assert all(panel.picture.startswith("data:image/jpeg;base64,") for panel in panels)
    report = read_json(world.workspace.evaluation_dir / "report.json")
    inputs = ReportInputs(
        report={**report, **fakes.build_search(), "behaviour": fakes.build_behaviour()},
        panels=panels,
        tally=tally,
        search_tally=SearchTally(depth=20, num_without=9, num_first=5, num_found=7, num_lost=3),
        crops=[row.box for row in after if row.box is not None],
        targets=[],
        warmup_curve=fakes.build_warmup_curve(),
        train_curve=fakes.build_train_curve(),
        rollouts=fakes.build_rollouts(),
    )
    page = render_page(inputs)
    assert page.count("<article ") == len(picked)
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!data:|#)', markup) == []
    assert page.count("</script>") == 3  # neither bundle nor data may end its element early
    assert "Under another frozen encoder" in page
    assert "Searching again finds a relevant document within 20 for 7 of these 9, at rank 1 for 5" in page
    assert '<a href="#search">' in page
    assert "box grown by 10 % a side; merged with the pool, scores 70 % crop, 30 % full image" in page
    without = {**report, "behaviour": {k: v for k, v in report["behaviour"].items() if k != "transfer"}}
    bare = render_page(
        replace(
            inputs,
            report=without,
            panels=[],
            search_tally=None,
            crops=[],
            warmup_curve=(),
            train_curve=(),
            rollouts=(),
        )
    )
    assert "The policy cropped no query" in bare
    assert 'id="training"' not in bare
    assert "Under another frozen encoder" not in bare
    assert "earching again" not in bare
    assert 'data-filter="won_back"' not in bare
