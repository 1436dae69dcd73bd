"""Searching again on the page: names, words, chart, and the cards of what was won back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.search.choices import SEARCH_METHODS
from pipeline.evaluation.search.figures import RERANKED, SEARCH_METRICS
from pipeline.files.store import load_documents, load_qrels
from pipeline.report import table
from pipeline.report.gallery import Card, build_panels
from pipeline.report.search.figures import DEPTHS, draw_recalls, draw_search_figures
from pipeline.report.search.headline import write_search_headline
from pipeline.report.search.won_back import list_won_back, pick_won_back
from pipeline.report.theme import build_spec
from tests.fakes import report_fakes as fakes
from tests.fakes.evaluation_fakes import build_fake_world


def test_every_method_and_metric_of_searching_again_has_a_name() -> None:
    assert set(table.SEARCH_LABELS) == {*SEARCH_METHODS, RERANKED}
    assert tuple(table.SEARCH_LABELS) == tuple(table.SEARCH_NOTES)
    assert tuple(method for group in table.SEARCH_GROUPS for method in group) == tuple(table.SEARCH_LABELS)
    assert {column.metric for column in table.SEARCH_COLUMNS} == set(SEARCH_METRICS)
    assert set(table.SEARCH_CHOSEN) == {name for name, method in SEARCH_METHODS.items() if len(method.settings) > 1}


def _write_headline(**bounds: float) -> tuple[str, str]:
    headline = write_search_headline({"num_queries": 40, **fakes.build_search(**bounds)})
    assert headline is not None
    return headline.result.replace("\u00a0", " "), " ".join(headline.shortfalls).replace("\u00a0", " ")


def test_headline_says_what_is_beaten_with_the_figures() -> None:
    result, shortfalls = _write_headline(low=0.05, high=0.2)
    assert "more answers first than the full image, re-ranking alone and the best rule." in result
    assert "all 40 test queries" in result
    assert "r-GRPO, merged 70.0 % [60.0 to 80.0], the best rule (base, merged) 55.0 %" in result
    assert "beyond doubt" not in shortfalls


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (-0.1, 0.1, "No clear difference between the trained policy and the best rule: the interval of the"),
        (-0.2, -0.1, "the full image and re-ranking alone, but fewer answers first than the best rule."),
    ],
)
def test_headline_says_that_the_best_rule_is_not_beaten(low: float, high: float, sentence: str) -> None:
    result, shortfalls = _write_headline(low=low, high=high)
    assert sentence in result
    assert "It is not beaten beyond doubt." in shortfalls


def test_shortfalls_count_harm_and_what_is_still_not_found() -> None:
    _, shortfalls = _write_headline()
    assert "r-GRPO, merged minus best rule (base, merged) is +20.0 points (+10.0 to +30.0" in shortfalls
    assert "Harm at 1: 4 of 40 (10.0 % [0.0 to 20.0])" in shortfalls
    assert "Still not found: 4 of 40 (10.0 % [0.0 to 20.0])" in shortfalls
    assert "searching with the perfect box, 75.0 %" in shortfalls
    assert "than SFT (60.0 % [50.0 to 70.0], harm 10.0 %" in shortfalls
    assert "base, grown (" not in shortfalls


def test_nothing_is_said_where_nothing_searched_again() -> None:
    assert write_search_headline({"num_queries": 40}) is None
    assert draw_search_figures({"num_queries": 40}) == []


def test_pairs_are_named_after_the_headline_and_the_rule_that_val_chose() -> None:
    choices = {"headline": "rgrpo", "best_rule": "full"}
    assert table.name_search_pair("rgrpo_minus_reranked", choices) == ("r-GRPO", "re-ranking alone")
    assert table.name_search_pair("rgrpo_minus_best_rule", choices) == ("r-GRPO", "best rule (full image)")


def test_chart_shows_every_depth_of_the_methods_there_are_in_the_order_of_the_table() -> None:
    methods = {name: row for name, row in fakes.build_search()["search"].items() if name != "perfect"}
    spec = build_spec(draw_recalls(dict(reversed(methods.items()))), "recall")
    rows = spec["data"]["values"]
    assert [row["label"] for row in rows[:4]] == ["R@1 30.0 %", "R@5 35.0 %", "R@10 40.0 %", "R@20 50.0 %"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == [table.SEARCH_LABELS[name] for name in methods]
    assert len(rows) == len(DEPTHS) * len(methods)
    assert [row["method"] for row in rows if row["opens_group"]] == ["base VLM", "SFT"]


def _list_won_back(*ranks: tuple[int | None, int | None]) -> tuple[list[Card], object]:
    names = [f"q{number:03d}" for number in range(len(ranks))]
    full, found = (
        [fakes.build_row(name, "full", rank, "full") for name, rank in zip(names, column, strict=True)]
        for column in zip(*ranks, strict=True)
    )
    queries = [fakes.build_query(name) for name in names]
    return list_won_back(queries, full, found, depth=20)


def test_won_back_is_what_the_pool_lacks_and_the_search_finds() -> None:
    cards, tally = _list_won_back((None, 3), (None, 1), (None, None), (2, 1), (4, None))
    assert [card.query.query_id for card in cards] == ["q000", "q001"]
    assert {card.kind for card in cards} == {"won_back"}
    assert (tally.num_without, tally.num_first, tally.num_found, tally.num_lost) == (3, 1, 2, 1)


def test_the_best_ranks_are_shown_spread_over_the_queries() -> None:
    cards, _ = _list_won_back(*[(None, 2)] * 4, *[(None, 1)] * 100, *[(None, 5)] * 4)
    numbers = [int(card.query.query_id[1:]) for card in pick_won_back(cards, num=4)]
    assert all(4 <= number < 104 for number in numbers)
    assert min(numbers) < 40 and max(numbers) > 75
    assert [card.after.first_rank for card in pick_won_back(cards, num=105)][99:] == [1, 2, 2, 2, 2, 5]


def test_a_document_outside_the_pool_is_marked_and_shown_with_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=7)
    tables = world.workspace.tables_dir
    relevant = {(qrel.query_id, qrel.doc_id) for qrel in load_qrels(tables / "qrels.parquet")}
    query, pool = next((q, p) for q, p in zip(world.queries, world.pools, strict=True) if not p.has_positive)
    (answer,) = (doc_id for query_id, doc_id in relevant if query_id == query.query_id)
    before = replace(fakes.build_row(query.query_id, "full", None, "full"), doc_ids=pool.doc_ids)
    after = replace(before, doc_ids=(*pool.doc_ids, answer), first_rank=len(pool.doc_ids) + 1)
    documents = {d.doc_id: d for d in load_documents(tables / "documents.parquet")}
    cards = [Card(kind="won_back", query=query, before=before, after=after)]
    (panel,) = build_panels(cards, relevant, documents, world.workspace.data_dir, max_pixels=10_000)
    assert [candidate.rank for candidate in panel.after] == [1, 2, 3, 4, 5, 7]
    assert [candidate.is_relevant for candidate in panel.after] == [False] * 5 + [True]
    assert not any(candidate.is_relevant for candidate in panel.before)
