"""Peak memory of each way, in a process of its own.

Linux keeps a high-water mark of a process's resident memory (VmHWM). Every way runs in a freshly spawned process that
loads the same libraries, models and tables first; one such process does nothing more, and its mark is taken off.
(`ru_maxrss` would not do: it survives exec, so a child never reports less than its parent had.)
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, Literal

from benchmarks.rewards.setting import Completions, load_setting
from pipeline.config import Params
from pipeline.process.progress import track
from pipeline.workspace import Workspace

Way = Literal["nothing", "ours", "naive", "floor", "ours_step", "stock_step"]

_NUM_STEPS: Final = 2
_MIB: Final = 1024


def measure_memory(
    ways: Sequence[Way], workspace: Workspace, params: Params, completions: Completions
) -> dict[str, float]:
    """Return MiB above the process that only loads, for each way, and that process itself as `nothing`."""
    wanted: list[Way] = ["nothing", *ways]
    peaks: dict[Way, float] = {}
    with track("bench: peak memory", len(wanted)) as advance:
        for way in wanted:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                peaks[way] = process.submit(_measure_peak, way, workspace, params, completions).result()
            advance(1)
    loaded = peaks["nothing"]
    return {way: peak if way == "nothing" else peak - loaded for way, peak in peaks.items()}


def _measure_peak(way: Way, workspace: Workspace, params: Params, completions: Completions) -> float:
    """Do it once (in a process of its own) and return the high-water mark in MiB."""
    from benchmarks import train_step
    from benchmarks.rewards import floor, reward
    from pipeline.policy.policy import load_policy

    setting = load_setting(workspace, params).cut_pools(params.retrieve.pool_size)
    policy = load_policy(params.policy.path, params.policy)
    train = params.train.model_copy(update={"max_steps": _NUM_STEPS})
    match way:
        case "ours":
            reward.score_ours(setting, policy, completions)
        case "naive":
            reward.score_naively(setting, completions)
        case "floor":
            floor.embed_crops(setting, floor.list_distinct_crops(setting, completions))
        case "ours_step":
            train_step.train_ours(setting, train)
        case "stock_step":
            train_step.train_stock(setting, train)
        case "nothing":
            pass
    return _read_high_water_mark()


def _read_high_water_mark() -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) / _MIB
