"""How the cost grows with the pool's size, the group's size and the pictures' size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.rewards.completions import give_to, resize_groups, take_queries, take_rows
from benchmarks.rewards.reward import check_agreement, score_naively, score_ours
from benchmarks.rewards.setting import Completions, Setting, load_setting, resize_world, run_stages
from benchmarks.timing import Cost, Spread, compute_spread, do_in_turn, measure
from benchmarks.train_step import measure_train_step
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.workspace import Workspace

Axis = Literal["pool_size", "group_size", "image_side_px"]


@dataclass(frozen=True, slots=True)
class Point:
    """One way at one size.

    Attributes:
        axis: what was varied.
        value: to which value.
        way: ours, naive or stock.
        unit: rewards_per_s or seconds_per_step.
        figure: median and range by the clock.
        figure_cpu: the same by CPU time, which a busy machine hardly changes.
    """

    axis: Axis
    value: int
    way: Literal["ours", "naive", "stock"]
    unit: Literal["rewards_per_s", "seconds_per_step"]
    figure: Spread
    figure_cpu: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What is tried along each axis; the other two stay at the demo's values."""

    pool_sizes: tuple[int, ...]
    group_sizes: tuple[int, ...]
    image_sides_px: tuple[int, ...]


def measure_reward_growth(
    settings: Sequence[tuple[Axis, int, Setting, Completions]], policy: Policy, num_turns: int
) -> list[Point]:
    """Return rewards per second of ours (all completions) and of the naive way (one whole group a turn)."""
    points: list[Point] = []
    with track("bench: growth of the reward", len(settings)) as advance:
        for axis, value, setting, completions in settings:
            costs = _measure_costs(setting, policy, completions, num_turns)
            for way, spent in costs.items():
                wall = compute_spread([1.0 / cost.wall_s for cost in spent])
                cpu = compute_spread([1.0 / cost.cpu_s for cost in spent])
                points.append(Point(axis, value, way, "rewards_per_s", wall, cpu))
            advance(1)
    return points


def measure_step_growth(
    setting: Setting, group_sizes: Sequence[int], *, num_blocks: int, steps_per_block: int
) -> list[Point]:
    """Return seconds of a training step by group size, ours and stock."""
    points: list[Point] = []
    for size in group_sizes:
        figures = measure_train_step(
            setting, resize_groups(setting.params, size), num_blocks=num_blocks, steps_per_block=steps_per_block
        )
        points += [
            Point("group_size", size, "ours", "seconds_per_step", figures.ours_s, figures.ours_cpu_s),
            Point("group_size", size, "stock", "seconds_per_step", figures.stock_s, figures.stock_cpu_s),
        ]
    return points


def list_settings(
    world: Workspace, setting: Setting, completions: Completions, group_size: int, sizes: Sizes, scratch_dir: Path
) -> Iterator[tuple[Axis, int, Setting, Completions]]:
    """Yield what each point is measured on; the decisions are the same everywhere, in fractions of the picture.

    Args:
        world: as drawn.
        setting: its largest pools.
        completions: groups as large as the largest of `sizes`, of queries with a positive in the smallest pool.
        group_size: of the points that vary something else.
        sizes: what to try.
        scratch_dir: where worlds of other picture sizes are written.
    """
    params = setting.params
    largest = max(sizes.group_sizes)
    plain = take_rows(completions, largest, group_size)
    num_queries = len(set(plain.query_ids))
    spare = sorted(setting.pools)[: 2 * num_queries]
    for k in sizes.pool_sizes:
        yield "pool_size", k, setting.cut_pools(k), plain
    for size in sizes.group_sizes:
        yield "group_size", size, setting.cut_pools(params.retrieve.pool_size), take_rows(completions, largest, size)
    for side_px in sizes.image_sides_px:
        resized = Workspace.at(scratch_dir / f"side_{side_px}")
        resize_world(world, resized, side_px, spare)
        run_stages(resized, params)
        squashed = load_setting(resized, params)
        yield "image_side_px", side_px, squashed, give_to(plain, squashed.choose_queries(num_queries))


def _measure_costs(
    setting: Setting, policy: Policy, completions: Completions, num_turns: int
) -> dict[Literal["ours", "naive"], list[Cost]]:
    """Return the cost of one reward, turn by turn."""
    query_ids = list(dict.fromkeys(completions.query_ids))
    ours_costs, naive_costs = [], []
    for turn in range(num_turns):
        part = take_queries(completions, [query_ids[turn % len(query_ids)]])
        (naive_cost, rewards), ours = do_in_turn(
            partial(measure, partial(score_naively, setting, part)),
            partial(score_ours, setting, policy, completions),
            turn,
        )
        own_rows = [row for row, query_id in enumerate(completions.query_ids) if query_id in part.query_ids]
        check_agreement(rewards, [ours.rewards[row] for row in own_rows])
        ours_costs.append(ours.cost.divide(len(completions)))
        naive_costs.append(naive_cost.divide(len(part)))
    return {"ours": ours_costs, "naive": naive_costs}
