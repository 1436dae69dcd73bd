"""What the recipes of the base models say while they run and afterwards: progress, milestones, the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pipeline.process.progress import Advance, track

Say = Callable[[str], None]


def count_up(advance: Advance) -> Callable[[int], None]:
    """Turn totals so far into increments."""
    done = 0

    def report(total: int) -> None:
        nonlocal done
        advance(total - done)
        done = total

    return report


@contextmanager
def report_steps(
    what: str, num_steps: int, say: Say, every: int = 100
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yield what a training calls after each step; every so many steps its figures are said."""
    with track(what, num_steps) as advance:

        def report(step: int, figures: dict[str, float]) -> None:
            advance(1)
            if (step + 1) % every == 0:
                text = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
                say(f"{what} {step + 1} of {num_steps}: {text}")

        yield report


def describe_machine(minutes: float) -> str:
    """Return how long a recipe ran, and on what."""
    return (
        f"{minutes:.0f} minutes on {torch.get_num_threads()} threads ({platform.machine()}, torch {torch.__version__})"
    )


def format_shares(shares: dict[str, float]) -> str:
    """Return rows of a Markdown table: kind of reference, share of boxes found."""
    return "\n".join(f"| {kind} | {share:.1%} |" for kind, share in shares.items())
