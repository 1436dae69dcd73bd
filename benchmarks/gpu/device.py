"""Figures of one device: synchronised time, peak memory of a piece of work, running out of memory as a result."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from benchmarks.timing import Spread, compute_spread

Result = TypeVar("Result")
GB = 1e9


@dataclass(frozen=True, slots=True)
class Measured(Generic[Result]):
    """What one piece of work gave and took.

    Attributes:
        result: what it gave; None if memory ran out.
        peak_gb: most memory that tensors held on the device meanwhile, weights included; None where it is not
            measured (a CPU).
    """

    result: Result | None
    peak_gb: float | None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_clock(device: torch.device) -> float:
    """Return seconds on the clock once the device is idle."""
    synchronise(device)
    return time.perf_counter()


def time_calls(work: Callable[[], object], device: torch.device, num_calls: int) -> Spread:
    """Return the seconds of each of some calls after one that is not counted."""
    work()
    seconds = []
    for _ in range(num_calls):
        start = read_clock(device)
        work()
        seconds.append(read_clock(device) - start)
    return compute_spread(seconds)


def measure_on(device: torch.device, work: Callable[[], Result]) -> Measured[Result]:
    """Do the work and note its peak memory; where memory runs out there is no result, and the device is cleared."""
    if device.type != "cuda":
        return Measured(work(), None)
    _clear()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        result = work()
    except torch.cuda.OutOfMemoryError:
        result = None
    peak_gb = torch.cuda.max_memory_allocated(device) / GB
    _clear()
    return Measured(result, peak_gb)


def _clear() -> None:
    gc.collect()
    torch.cuda.empty_cache()
