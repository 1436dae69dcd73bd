"""InfoSeek's score: the harmonic mean over its two splits, in report, page, command line and metrics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.core.statistics.significance import bootstrap_harmonic_mean, bootstrap_ratio
from pipeline.evaluation.figures import INFOSEEK_SPLITS
from pipeline.evaluation.methods import METHODS
from pipeline.files.store import load_results, read_json, save_queries
from pipeline.runs.tracking import null_run
from pipeline.stages import report
from pipeline.types import Pool, Query
from tests.fakes.evaluation_fakes import PARAMS, FakeWorld, ask_and_evaluate, build_fake_world

pytestmark = pytest.mark.slow  # draws the page again and again

DRAWS = {"num_resamples": 500, "confidence": 0.9, "seed": 3}
METRICS = ("cond_recall_at_1", "recall_at_1")

SplitOf = Callable[[Query, Pool], str | None]


def alternate(query: Query, _: Pool) -> str:
    return INFOSEEK_SPLITS[int(query.query_id[1:]) % 3 == 0]


class Evaluated:
    """The stage's outputs over a world whose test queries are tagged by split."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, split_of: SplitOf) -> None:
        self.world: FakeWorld = build_fake_world(folder, monkeypatch)
        pairs = zip(self.world.queries, self.world.pools, strict=True)
        self.splits = {query.query_id: split_of(query, pool) for query, pool in pairs}
        tagged = [
            replace(query, tags={**query.tags, **({"split": split} if (split := self.splits[query.query_id]) else {})})
            for query in self.world.queries
        ]
        save_queries(self.world.workspace.tables_dir / "queries.parquet", [*tagged, *self.world.val_queries])
        self.figures = ask_and_evaluate(PARAMS, self.world.workspace)
        report.run(PARAMS, self.world.workspace, null_run())
        self.report: dict[str, Any] = read_json(self.world.workspace.evaluation_dir / "report.json")
        self.page = (self.world.workspace.report_dir / "report.html").read_text(encoding="utf-8")

    def count_rate(self, method: str, split: str, *, conditional: bool) -> float:
        """Recall at 1 of one split, counted by hand."""
        has_positive = {pool.query_id: pool.has_positive for pool in self.world.pools}
        rows = [
            row
            for row in load_results(self.world.workspace.evaluation_dir / "results.parquet")
            if row.method == method and self.splits[row.query_id] == split
        ]
        counted = [row for row in rows if has_positive[row.query_id] or not conditional]
        return sum(row.first_rank == 1 for row in counted) / len(counted)


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    return Evaluated(tmp_path, monkeypatch, alternate)


def test_every_method_has_both_splits_and_their_harmonic_mean(evaluated: Evaluated) -> None:
    assert set(evaluated.report["infoseek"]) == set(METHODS)
    for method, scores in evaluated.report["infoseek"].items():
        for metric, conditional in zip(METRICS, (True, False), strict=True):
            rates = [evaluated.count_rate(method, split, conditional=conditional) for split in INFOSEEK_SPLITS]
            found = scores[metric]
            assert list(found["by_split"]) == list(INFOSEEK_SPLITS)
            assert [share["value"]["mean"] for share in found["by_split"].values()] == pytest.approx(rates)
            expected = statistics.harmonic_mean(rates)
            mean = found["harmonic_mean"]
            assert mean["mean"] == pytest.approx(expected)
            assert mean["low"] <= mean["mean"] <= mean["high"]
            assert evaluated.figures[f"{method}.infoseek_{metric}"] == pytest.approx(expected)
    assert evaluated.report["infoseek"]["oracle"]["cond_recall_at_1"]["harmonic_mean"]["mean"] > 0


def test_page_and_command_line_show_it(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'id="infoseek"' in evaluated.page
    assert "<th>unseen question<br>CondR@1</th>" in evaluated.page
    monkeypatch.chdir(evaluated.world.workspace.data_dir.parent)
    ended = CliRunner().invoke(cli.app, ["results", "--json"])
    assert json.loads(ended.stdout)["infoseek"] == evaluated.report["infoseek"]
    shown = " ".join(CliRunner().invoke(cli.app, ["results"]).stdout.split())
    mean = evaluated.report["infoseek"]["rgrpo"]["cond_recall_at_1"]["harmonic_mean"]["mean"]
    assert f"InfoSeek, harmonic mean of CondR@1 over both splits, r-GRPO: {100 * mean:.1f} %" in shown


def test_split_without_a_positive_has_no_number_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Evaluated(tmp_path, monkeypatch, lambda _, pool: INFOSEEK_SPLITS[not pool.has_positive])
    for method, scores in ended.report["infoseek"].items():
        score = scores["cond_recall_at_1"]
        assert score["by_split"]["unseen_entity"] == {"num_queries": 0, "value": None}
        assert score["harmonic_mean"] is None
        assert scores["recall_at_1"]["harmonic_mean"]["mean"] == 0.0  # queries there are, and none is right
        assert f"{method}.infoseek_cond_recall_at_1" not in ended.figures
    assert "n/a: a split has no query with a positive" in ended.page


@pytest.mark.parametrize("split", [None, *INFOSEEK_SPLITS])
def test_one_split_alone_has_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str | None) -> None:
    ended = Evaluated(tmp_path, monkeypatch, lambda *_: split)
    assert ended.report["infoseek"] == {}
    assert 'id="infoseek"' not in ended.page
    assert not [name for name in ended.figures if "infoseek" in name]


def test_interval_comes_from_the_same_resamples_as_those_of_the_rates() -> None:
    rng = np.random.default_rng(1)
    hits = rng.integers(0, 2, size=60).astype(float)
    first, second = np.repeat([1.0, 0.0], 30), np.repeat([0.0, 1.0], 30)
    same = bootstrap_harmonic_mean([(hits, np.ones(60))] * 2, **DRAWS)
    assert same == bootstrap_ratio(hits, np.ones(60), **DRAWS)
    apart = bootstrap_harmonic_mean([(hits * first, first), (hits * second, second)], **DRAWS)
    assert apart.mean == pytest.approx(statistics.harmonic_mean([hits[:30].mean(), hits[30:].mean()]))
    assert apart.low < apart.mean < apart.high


def test_rates_beyond_one_and_empty_splits_are_refused() -> None:
    ones = np.ones(4)
    with pytest.raises(ValueError, match=r"rates must lie in \[0, 1\]"):
        bootstrap_harmonic_mean([(2 * ones, ones), (ones, ones)], **DRAWS)
    with pytest.raises(ValueError, match="denominator sums to 0"):
        bootstrap_harmonic_mean([(ones, ones), (0 * ones, 0 * ones)], **DRAWS)
