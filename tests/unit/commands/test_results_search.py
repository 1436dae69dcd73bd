"""`region-r1 results` of an evaluation that searched again: JSON for scripts, tables for people."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.report.table import SEARCH_LABELS
from pipeline.results import print_results, summarise
from tests.fakes import report_fakes as fakes

_BARE = {
    "methods": {},
    "paired": {},
    "best_rule": None,
    "best_rgrpo": None,
    "rules": {},
    "left_out": {},
    "val": {},
    "num_queries": 40,
    "num_with_positive": 20,
    "params_sha256": "",
    "data_md5": "",
    "behaviour": {},
    "confidence": 0.95,
}


def _print(report: dict) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    print_results(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_json_names_every_method_figure_and_difference() -> None:
    found = summarise(_BARE | fakes.build_search())
    assert set(found["search"]) == set(SEARCH_LABELS)
    depths = {
        f"{name}_at_{depth}" for name, known in (("recall", (1, 5, 10, 20)), ("harm", (1, 20))) for depth in known
    }
    assert {*depths, "mrr", "ndcg"} <= set(found["search"]["rgrpo_union"])
    assert found["search"]["full"]["recall_at_1"] == fakes.build_interval(0.3)
    assert found["paired_search"]["rgrpo_minus_best_rule"]["recall_at_1"].keys() == {"mean", "low", "high", "p_value"}
    assert {"rgrpo_minus_full", "rgrpo_minus_reranked"} <= found["paired_search"].keys()


def test_nothing_searched_again_is_empty_in_json_and_unsaid_to_people() -> None:
    found = summarise(_BARE)
    assert (found["search"], found["paired_search"], found["search_choices"]) == ({}, {}, {})
    assert "earching again" not in " ".join(_print(_BARE))


@pytest.mark.parametrize("label", ["R@1", "R@5", "R@10", "R@20", "MRR", "NDCG", "cropped", "harm at 1", "harm at 20"])
def test_tables_for_people_hold_the_figure_uncut(label: str) -> None:
    lines = _print(_BARE | fakes.build_search())
    lines = lines[next(row for row, line in enumerate(lines) if line.startswith("Searching again")) :]
    (head,) = (row for row, line in enumerate(lines) if line.startswith("method") and f" {label} " in f"{line} ")
    rows = lines[head + 1 :][: len(SEARCH_LABELS)]
    assert all(row.startswith(name) for row, name in zip(rows, SEARCH_LABELS.values(), strict=True))
    assert not any("…" in line for line in lines)


def test_choices_and_differences_follow_the_tables() -> None:
    output = " ".join(" ".join(_print(_BARE | fakes.build_search())).split())
    assert "searching again, base, merged, as chosen on val: box grown by 10 % a side; merged" in output
    assert "against best rule (base, merged), R@1: +20.0 points (+10.0 to +30.0" in output
    assert "against re-ranking alone, R@1" in output
