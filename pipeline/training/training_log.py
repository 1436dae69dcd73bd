"""What a Trainer says while it trains: figures to the tracking store, a line or a bar with the time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.process.progress import Advance
from pipeline.types import CurvePoint

LogMetrics = Callable[[Mapping[str, float], int], None]


class TrainingLog(TrainerCallback):  # type: ignore[misc]
    """Forwards a Trainer's log to a function and its steps to a progress display.

    Args:
        log: receives the finite numbers of each log entry and the step.
        advance: told about each optimiser step.
        names: Trainer's name -> the name to log it under; all others are dropped.
    """

    def __init__(self, log: LogMetrics, advance: Advance, names: Mapping[str, str]) -> None:
        self._log = log
        self._advance = advance
        self._names = names

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step."""
        self._advance(1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Repeat what a resumed run had logged before it was cut off, so that its new record is whole."""
        self._advance(state.global_step)
        for point in collect_curve(state.log_history, self._names):
            self._log({point.metric: point.value}, point.step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass the figures on."""
        if figures := _select_figures(logs or {}, self._names):
            self._log(figures, state.global_step)


def collect_curve(log_history: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[CurvePoint]:
    """Return the finite figures of a Trainer's whole log, those before a resume among them.

    Args:
        log_history: one mapping per log entry, with its `step`.
        names: Trainer's name -> the name to keep it under; all others are dropped.
    """
    points = [
        CurvePoint(step=int(entry["step"]), metric=metric, value=value)
        for entry in log_history
        for metric, value in _select_figures(entry, names).items()
    ]
    return sorted(points, key=lambda point: (point.step, point.metric))  # a checkpoint's log has another order


def _select_figures(logs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {
        names[name]: float(value)
        for name, value in logs.items()
        if name in names and isinstance(value, int | float) and math.isfinite(value)
    }
