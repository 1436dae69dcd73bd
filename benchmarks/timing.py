"""Two things timed in turn, so that whatever else the machine does meets both; ratios, their median and spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")
First = TypeVar("First")
Second = TypeVar("Second")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work took.

    Attributes:
        wall_s: seconds on the clock, which other processes lengthen.
        cpu_s: seconds of all cores spent in this process, which they hardly do.
    """

    wall_s: float
    cpu_s: float

    def divide(self, parts: float) -> Cost:
        """Return the cost of one of so many equal parts."""
        return Cost(self.wall_s / parts, self.cpu_s / parts)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured several times.

    Attributes:
        median: the middle value.
        low: the smallest.
        high: the largest.
        count: how many there are.
    """

    median: float
    low: float
    high: float
    count: int


def compute_spread(values: Sequence[float]) -> Spread:
    """Return median and range of one or more values."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def measure(work: Callable[[], Result]) -> tuple[Cost, Result]:
    """Return what one call costs, and what it gives."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu), result


def do_in_turn(first: Callable[[], First], second: Callable[[], Second], turn: int) -> tuple[First, Second]:
    """Return the results of both, one called right after the other; odd turns begin with the second."""
    if turn % 2:
        later = second()
        return first(), later
    return first(), second()


def compute_ratios(pairs: Sequence[tuple[Cost, Cost]]) -> tuple[Spread, Spread]:
    """Return how many times the second's cost the first takes: by the clock, and in CPU time."""
    wall = compute_spread([first.wall_s / second.wall_s for first, second in pairs])
    return wall, compute_spread([first.cpu_s / second.cpu_s for first, second in pairs])
