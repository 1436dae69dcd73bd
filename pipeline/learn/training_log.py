"""What a Trainer says while it trains: figures to the tracking store, a line or a bar with the time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.progress import Advance

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

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass the figures on."""
        figures = {
            self._names[name]: float(value)
            for name, value in (logs or {}).items()
            if name in self._names and isinstance(value, int | float) and math.isfinite(value)
        }
        if figures:
            self._log(figures, state.global_step)
