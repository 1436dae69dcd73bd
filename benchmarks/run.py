"""The whole benchmark: draws a world in a scratch folder, measures everything on it, returns bench.json's content."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.growth import Point, Sizes, list_settings, measure_reward_growth, measure_step_growth
from benchmarks.memory import Way, measure_memory
from benchmarks.rewards.completions import sample_completions, take_rows
from benchmarks.rewards.reward import RewardFigures, measure_reward
from benchmarks.rewards.search_reward import SearchFigures, measure_search_reward
from benchmarks.rewards.setting import draw_world, load_setting, run_stages
from benchmarks.train_step import TrainFigures, measure_train_step
from pipeline.config import Params
from pipeline.policy.policy import load_policy
from pipeline.workspace import Workspace

logger = logging.getLogger("pipeline.bench")

GOALS: Final = {
    "speedup_over_naive": {"at_least": 30.0},
    "over_floor": {"at_most": 1.15},
    "over_stock": {"at_most": 1.15},
    "over_pool": {"at_most": 1.3},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """How much is measured; the defaults are `make bench`.

    Attributes:
        num_entities: documents of the world.
        num_train: queries drawn; those without a positive in their pool drop out.
        num_queries: queries whose completions are scored.
        queries_per_turn: groups that the naive way scores between two turns of ours.
        num_turns: of ours and floor.
        num_blocks: trainings of either kind.
        steps_per_block: steps of each, the first one not counted.
        index_sizes: documents of the indexes, beside the world's own, that rewards by search are measured on.
        growth_turns: of each point of the reward's growth.
        growth_blocks: trainings of either kind for each group size.
        sizes: of the growth.
        ways: whose peak memory is measured.
    """

    num_entities: int = 96
    num_train: int = 192
    num_queries: int = 32
    queries_per_turn: int = 4
    num_turns: int = 15
    num_blocks: int = 5
    steps_per_block: int = 4
    index_sizes: tuple[int, ...] = (100_000,)
    growth_turns: int = 3
    growth_blocks: int = 1
    sizes: Sizes = field(
        default_factory=lambda: Sizes(
            pool_sizes=(5, 10, 20, 40), group_sizes=(4, 8, 16), image_sides_px=(112, 224, 448, 896)
        )
    )
    ways: tuple[Way, ...] = ("ours", "naive", "floor", "ours_step", "stock_step")


def run_bench(params: Params, workload: Workload, scratch_dir: Path) -> dict[str, Any]:
    """Measure everything and return what bench.json holds.

    Args:
        params: method, models and sizes; the data sections are set here.
        workload: how much is measured.
        scratch_dir: an empty folder.

    Raises:
        RegionR1Error: the world is too small for the workload, or a model cannot be loaded.
        DisagreementError: the naive way and ours give different rewards.
    """
    params = _fit_params(params, workload)
    world = Workspace.at(scratch_dir / "world")
    draw_world(world, params)
    widest = params.model_copy(
        update={"retrieve": params.retrieve.model_copy(update={"pool_size": max(workload.sizes.pool_sizes)})}
    )
    run_stages(world, widest)
    whole = load_setting(world, params)
    setting = whole.cut_pools(params.retrieve.pool_size)
    policy = load_policy(params.policy.path, params.policy)
    query_ids = whole.cut_pools(min(workload.sizes.pool_sizes)).choose_queries(workload.num_queries)
    logger.info("bench: completions of %d queries are sampled", len(query_ids))
    largest = max(workload.sizes.group_sizes)
    sampled = sample_completions(setting, policy, query_ids, largest, params.seed)
    completions = take_rows(sampled, largest, params.train.group_size)

    reward = measure_reward(
        setting, policy, completions, queries_per_turn=workload.queries_per_turn, num_turns=workload.num_turns
    )
    searches = [
        measure_search_reward(
            one, policy, completions, queries_per_step=params.train.queries_per_step, num_turns=workload.num_turns
        )
        for one in (setting, *(setting.pad_index(size) for size in workload.index_sizes))
    ]
    logger.info("bench: training steps, %d times ours and stock in turn", workload.num_blocks)
    step = measure_train_step(
        setting, params.train, num_blocks=workload.num_blocks, steps_per_block=workload.steps_per_block
    )
    logger.info("bench: worlds of other picture sizes are made")
    settings = list(list_settings(world, whole, sampled, params.train.group_size, workload.sizes, scratch_dir))
    points = measure_reward_growth(settings, policy, workload.growth_turns)
    logger.info("bench: training steps by group size")
    points += measure_step_growth(
        setting, workload.sizes.group_sizes, num_blocks=workload.growth_blocks, steps_per_block=workload.steps_per_block
    )
    memory = measure_memory(workload.ways, world, params, completions)
    return compose_report(params, workload, reward, searches, step, points, memory)


def compose_report(
    params: Params,
    workload: Workload,
    reward: RewardFigures,
    searches: Sequence[SearchFigures],
    step: TrainFigures,
    points: list[Point],
    memory: dict[str, float],
) -> dict[str, Any]:
    """Return what bench.json holds: the four ratios as plain numbers, everything else with its spread.

    The ratio of rewards by search is that on the world's own index.
    """
    return {
        "goals": GOALS,
        "setting": {
            "pool_size": params.retrieve.pool_size,
            "group_size": params.train.group_size,
            "num_queries": workload.num_queries,
            "queries_per_step": params.train.queries_per_step,
        },
        "machine": {
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        },
        "reward": {
            "speedup_over_naive": reward.speedup.median,
            "over_floor": reward.floor_ratio.median,
            **asdict(reward),
        },
        "search_reward": {
            "over_pool": searches[0].over_pool.median,
            "by_index": [asdict(figures) for figures in searches],
        },
        "train_step": {"over_stock": step.stock_ratio.median, **asdict(step)},
        "growth": [asdict(point) for point in points],
        "memory_mib": memory,
    }


def _fit_params(params: Params, workload: Workload) -> Params:
    demo = params.demo.model_copy(update={"num_entities": workload.num_entities, "num_train": workload.num_train})
    data = params.data.model_copy(update={"source": "jsonl"})
    return params.model_copy(update={"demo": demo, "data": data})
