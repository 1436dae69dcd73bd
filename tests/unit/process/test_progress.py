"""Progress where there is no terminal."""

from __future__ import annotations

import logging

import pytest

from pipeline.process import progress
from pipeline.process.progress import track


@pytest.mark.parametrize(
    ("each_s", "total", "message"),
    [
        (0.01, 4000, "step 1000 of 4000, 100 a second, 30 s left"),
        (8.0, 4000, "step 1000 of 4000, 8.0 s each, 24000 s left"),
        (0.9, None, "step 1000, 0.9 s each"),
    ],
)
def test_slow_work_shows_seconds_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, each_s: float, total: int | None, message: str
) -> None:
    clock = iter((0.0, 1000 * each_s))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), track("step", total) as advance:
        advance(1000)
    assert [record.getMessage() for record in caplog.records] == [message]
