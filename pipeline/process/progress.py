"""Progress of long loops and the time left: a bar on a terminal, else a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]


@contextmanager
def track(what: str, total: int | None, *, interval_s: float = 5.0) -> Iterator[Advance]:
    """Yield a function that is told how many more items are done.

    Args:
        what: what is counted, such as `index: documents`.
        total: how many there are, None if nobody knows.
        interval_s: time between two log lines where there is no terminal.
    """
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(what, total=total)
            yield lambda num_items: progress.advance(task, num_items)
    else:
        yield _LoggedProgress(what, total, interval_s).advance


class _LoggedProgress:
    def __init__(self, what: str, total: int | None, interval_s: float) -> None:
        self._what, self._total, self._interval_s = what, total, interval_s
        self._num_done = 0
        self._started = self._last_logged = time.monotonic()

    def advance(self, num_items: int) -> None:
        self._num_done += num_items
        now = time.monotonic()
        if now - self._last_logged < self._interval_s or not self._num_done:
            return
        self._last_logged = now
        rate = self._num_done / (now - self._started)
        if self._total is None:
            logger.info("%s %d, %s", self._what, self._num_done, _format_rate(rate))
            return
        left_s = (self._total - self._num_done) / rate
        text = _format_rate(rate)
        logger.info("%s %d of %d, %s, %.0f s left", self._what, self._num_done, self._total, text, left_s)


def _format_rate(rate: float) -> str:
    """Return items a second, or seconds an item where that would be a small fraction."""
    return f"{rate:.0f} a second" if rate >= 2.0 else f"{1.0 / rate:.1f} s each"
