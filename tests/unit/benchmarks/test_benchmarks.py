"""The benchmark measures what it says: equal rewards, equal crops, a whole bench.json. No test asserts a time."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.growth import Sizes
from benchmarks.plot import save_plot
from benchmarks.rewards.completions import give_to, resize_groups, take_queries, take_rows
from benchmarks.rewards.floor import embed_crops, list_distinct_crops
from benchmarks.rewards.reward import DisagreementError, check_agreement, score_naively, score_ours
from benchmarks.rewards.search_reward import measure_search_reward
from benchmarks.rewards.setting import Completions, Setting, load_setting
from benchmarks.run import Workload, run_bench
from benchmarks.table import is_met, print_report
from benchmarks.timing import compute_spread, do_in_turn
from pipeline.config import Params, PolicyParams, load_params
from pipeline.policy.policy import Policy, load_policy
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Box, Crop, Decision, KeepFull, Malformed
from tests.tiny_models import build_corpus, build_params

pytestmark = pytest.mark.slow
CHECKOUT = Path(__file__).resolve().parents[3]
GROUP: Sequence[Decision] = (
    Crop(Box(0.1, 0.2, 0.6, 0.9)),
    KeepFull(),
    Crop(Box(0.1, 0.2, 0.6, 0.9)),
    Crop(Box(0.0, 0.0, 1.0, 1.0)),
    Malformed("nonsense"),
    Crop(Box(0.3, 0.0, 0.8, 0.5)),
)


@pytest.fixture(scope="module")
def setting(tiny_clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A corpus whose documents have no picture, one or two; a random encoder."""
    workspace = build_corpus(tmp_path_factory.mktemp("bench"))
    params = build_params(tiny_clip_dir, pool_size=20)
    for stage in (index_stage, retrieve_stage):
        stage.run(params, workspace, null_run())
    return load_setting(workspace, params)


@pytest.fixture(scope="module")
def policy(tiny_llava_dir: Path) -> Policy:
    return load_policy(tiny_llava_dir, PolicyParams(device="cpu"))


@pytest.fixture
def completions(setting: Setting) -> Completions:
    return Completions(
        query_ids=tuple(query_id for query_id in setting.pools for _ in GROUP),
        decisions=tuple(GROUP) * len(setting.pools),
    )


def test_naive_reward_and_ours_agree(setting: Setting, policy: Policy, completions: Completions) -> None:
    naive, ours = score_naively(setting, completions), score_ours(setting, policy, completions).rewards
    assert check_agreement(naive, ours) <= 1e-4
    assert len({round(reward, 4) for reward in naive}) > 4


@pytest.mark.parametrize("num_documents", [30, 500])
def test_a_reward_by_search_agrees_with_a_ranking_of_every_document(
    setting: Setting, policy: Policy, completions: Completions, num_documents: int
) -> None:
    figures = measure_search_reward(
        setting.pad_index(num_documents), policy, completions, queries_per_step=2, num_turns=2
    )
    assert figures.largest_difference <= 1e-4
    assert (figures.num_documents, figures.num_completions) == (num_documents, 2 * len(GROUP))


def test_rewards_that_differ_stop_the_benchmark(setting: Setting, policy: Policy, completions: Completions) -> None:
    naive = score_naively(setting, completions)
    other = replace(completions, decisions=(*completions.decisions[1:], completions.decisions[0]))
    with pytest.raises(DisagreementError, match="differs from ours"):
        check_agreement(naive, score_ours(setting, policy, other).rewards)


def test_floor_embeds_the_crops_that_ours_embeds(setting: Setting, completions: Completions) -> None:
    crops = list_distinct_crops(setting, completions)
    scorer = setting.open_scorer()
    scorer.score_views(
        [
            (query_id, decision.box)
            for query_id, decision in zip(completions.query_ids, completions.decisions, strict=True)
            if isinstance(decision, Crop)
        ]
    )
    assert len(embed_crops(setting, crops)) == scorer.num_encoded == 2 * len(setting.pools)


def test_smaller_pools_keep_the_best_and_only_queries_with_a_positive(setting: Setting) -> None:
    small = setting.cut_pools(8)
    assert 0 < len(small.pools) < len(setting.pools)
    for query_id, pool in small.pools.items():
        assert pool.doc_ids == setting.pools[query_id].doc_ids[:8]
        assert pool.has_positive


def test_parts_of_completions_are_whole_groups(completions: Completions) -> None:
    names = list(dict.fromkeys(completions.query_ids))
    small = take_rows(completions, len(GROUP), 2)
    assert small.decisions == tuple(GROUP[:2]) * len(names)
    one = take_queries(completions, names[1:2])
    assert set(one.query_ids) == {names[1]} and one.decisions == tuple(GROUP)
    assert give_to(one, ["other"]) == Completions(query_ids=("other",) * len(GROUP), decisions=tuple(GROUP))


@pytest.mark.parametrize(
    ("arms", "wanted"),
    [
        ((4, 2), [(1, 1), (2, 1), (4, 2), (8, 4)]),
        ((6, 1), [(1, 1), (3, 1), (6, 1), (12, 2)]),
        ((0, 0), [(0, 0), (0, 0), (0, 0), (0, 0)]),
    ],
    ids=str,
)
def test_groups_of_another_size_keep_their_proportions_and_both_arms(
    arms: tuple[int, int], wanted: list[tuple[int, int]]
) -> None:
    num_region, num_full = arms
    section = {"group_size": 8, "num_region": num_region, "num_full": num_full, "factorised": num_region > 0}
    params = Params.model_validate({"train": section})
    resized = [resize_groups(params, size) for size in (2, 4, 8, 16)]
    assert [train.group_size for train in resized] == [2, 4, 8, 16]
    assert [(train.num_region, train.num_full) for train in resized] == wanted


def test_turns_change_who_begins() -> None:
    calls: list[str] = []
    for turn in range(2):
        assert do_in_turn(lambda: calls.append("a") or 1, lambda: calls.append("b") or 2, turn) == (1, 2)
    assert calls == ["a", "b", "b", "a"]
    assert compute_spread([3.0, 1.0, 2.0]).median == 2.0


def test_a_goal_is_met_from_its_own_side() -> None:
    assert is_met({"at_least": 30.0}, 30.0) and not is_met({"at_least": 30.0}, 29.9)
    assert is_met({"at_most": 1.15}, 1.15) and not is_met({"at_most": 1.15}, 1.16)


@pytest.mark.smoke
def test_a_small_benchmark_gives_every_figure(tmp_path: Path) -> None:
    report = run_bench(_small_params(), _small_workload(), tmp_path)
    json.dumps(report)
    assert report["reward"]["speedup_over_naive"] == report["reward"]["speedup"]["median"]
    assert report["reward"]["over_floor"] == report["reward"]["floor_ratio"]["median"]
    assert report["train_step"]["over_stock"] == report["train_step"]["stock_ratio"]["median"]
    assert report["reward"]["largest_difference"] <= 1e-4
    by_index = report["search_reward"]["by_index"]
    assert [figures["num_documents"] for figures in by_index] == [16, 300]
    assert report["search_reward"]["over_pool"] == by_index[0]["over_pool"]["median"]
    assert report["train_step"]["our_positions"] > 0 < report["train_step"]["stock_positions"]
    assert {(point["axis"], point["value"], point["way"]) for point in report["growth"]} == {
        *(("pool_size", k, way) for k in (4, 8) for way in ("ours", "naive")),
        *(("group_size", size, way) for size in (4, 8) for way in ("ours", "naive", "stock")),
        *(("image_side_px", side_px, way) for side_px in (64, 112) for way in ("ours", "naive")),
    }
    assert set(report["memory_mib"]) == {"nothing", "floor"}
    save_plot(report, tmp_path / "bench.svg")
    assert "naive" in (tmp_path / "bench.svg").read_text()
    _assert_table_names_all_goals(report)


def test_make_help_and_readme_name_every_target() -> None:
    output = subprocess.run(["make", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^make ([\w-]+) ", output, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None and sorted(targets) == sorted(phony[1].split())
    readme = (CHECKOUT / "README.md").read_text()
    assert [target for target in targets if f"make {target}" not in readme] == []


def _small_params() -> Params:
    params = load_params(CHECKOUT / "params.yaml")
    return params.model_copy(
        update={
            "retrieve": params.retrieve.model_copy(update={"pool_size": 8}),
            "train": params.train.model_copy(
                update={"queries_per_step": 2, "group_size": 4, "num_region": 2, "num_full": 1}
            ),
        }
    )


def _small_workload() -> Workload:
    return Workload(
        num_entities=16,
        num_train=24,
        num_queries=2,
        queries_per_turn=1,
        num_turns=1,
        index_sizes=(300,),
        num_blocks=1,
        steps_per_block=2,
        growth_turns=1,
        growth_blocks=1,
        sizes=Sizes(pool_sizes=(4, 8), group_sizes=(4, 8), image_sides_px=(64, 112)),
        ways=("floor",),
    )


def _assert_table_names_all_goals(report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(record=True, width=140)
    print_report(report, console)
    output = console.export_text()
    assert len(re.findall(r"(?:not )?met", output)) == 5
