"""One step of a flow in a supervised child process, and the Prefect state that its outcome becomes.

Tasks return states instead of raising, so a failure is one line and no traceback:

    Cached       (completed)  DVC found the stage unchanged
    UserError    (failed)     a message for the user
    Busy         (failed)     another process holds the checkout; flow.busy_timeout_s says how long to wait
    TimedOut     (failed)     flow.stage_timeout_s or flow.queue_timeout_s passed
    Killed       (failed)     the stage died by a signal that we did not send, such as the OOM killer's
    Unavailable  (failed)     the DVC remote could not be read
    Failed       (failed)     anything else: a fault of ours; its traceback is in the log above
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.environment import PARENT_RUN_VARIABLE, ROOT_VARIABLE, child_environment
from flows.execution.outcome import Outcome
from flows.execution.supervise import Ended, TimeLimitError, run_supervised
from pipeline.config import Params
from pipeline.errors import BusyError, RegionR1Error
from pipeline.runs.run_lock import describe_busy, find_holder
from pipeline.runs.tracking import close_dead_runs

CACHED: Final = "Cached"
USER_ERROR: Final = "UserError"
BUSY: Final = "Busy"
TIMED_OUT: Final = "TimedOut"
KILLED: Final = "Killed"
UNAVAILABLE: Final = "Unavailable"
_BUSY_POLL_S = 2.0
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}


class StepStop(Exception):
    """A step failed and the flow ends with its state; raised inside the MLflow run, so that it ends as failed too."""

    def __init__(self, state: State[Any]) -> None:
        self.state: State[Any] = Failed(name=state.name, message=state.message)
        super().__init__(state.message)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """What a stage's task is told: the checkout, MLflow's parent run, where and how long it may run and wait."""

    root: Path
    parent_run_id: str
    placement: Literal["local", "pools"] = "local"
    timeout_s: float
    queue_timeout_s: float = 0.0
    busy_timeout_s: float = 0.0

    @classmethod
    def of(cls, root: Path, params: Params, parent_run_id: str) -> StageContext:
        """Return the context of a flow run."""
        return cls(
            root=root,
            parent_run_id=parent_run_id,
            placement=params.flow.placement,
            timeout_s=params.flow.stage_timeout_s,
            queue_timeout_s=params.flow.queue_timeout_s,
            busy_timeout_s=params.flow.busy_timeout_s,
        )


def run_step(name: str, command: Sequence[str], context: StageContext) -> State[Any]:
    """Run `python -m COMMAND --outcome FILE` in the checkout and return the state for what it says.

    While another process holds what it needs, it is started again, until `busy_timeout_s` has passed.
    """
    started, is_reported = time.monotonic(), False
    while True:
        state = _run_once(name, command, context)
        if state.name != BUSY or time.monotonic() - started >= context.busy_timeout_s:
            return state
        if not is_reported:
            is_reported = True
            get_run_logger().warning("%s waits: %s", name, state.message)
        time.sleep(_BUSY_POLL_S)
        while find_holder(context.root) and time.monotonic() - started < context.busy_timeout_s:
            time.sleep(_BUSY_POLL_S)


def check_step(state: State[Any]) -> State[Any]:
    """Return the state of a step that was done.

    Raises:
        StepStop: it was not.
    """
    if not state.is_completed():
        raise StepStop(state)
    return state


def describe_stop(error: StepStop | RegionR1Error) -> State[Any]:
    """Return the state of a flow that one of these ended."""
    if isinstance(error, StepStop):
        return error.state
    return Failed(name=BUSY if isinstance(error, BusyError) else USER_ERROR, message=str(error))


def _run_once(name: str, command: Sequence[str], context: StageContext) -> State[Any]:
    logger = get_run_logger()

    def pass_on(line: str) -> None:
        logger.log(_LEVELS.get(line.partition(":")[0].lower(), logging.INFO), "%s", line)

    own: Mapping[str, str] = {
        ROOT_VARIABLE: str(context.root),
        PARENT_RUN_VARIABLE: context.parent_run_id,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    with tempfile.TemporaryDirectory(prefix="region-r1-") as folder:
        outcome_path = Path(folder) / "outcome.json"
        try:
            ended = run_supervised(
                [sys.executable, "-m", *command, "--outcome", str(outcome_path)],
                on_line=pass_on,
                cwd=context.root,
                env=child_environment(**own),
                timeout_s=context.timeout_s,
            )
        except TimeLimitError as error:
            close_dead_runs(context.root)
            return Failed(name=TIMED_OUT, message=f"{name}: {error} (flow.stage_timeout_s)")
        state = describe_end(name, ended, Outcome.read(outcome_path), context)
    if state.name == KILLED:
        close_dead_runs(context.root)
    return state


def describe_end(name: str, ended: Ended, outcome: Outcome | None, context: StageContext) -> State[Any]:
    """Return the state of a step by its outcome; without one, by the exit code of the process that owed it."""
    if outcome is None:
        return _describe_exit(name, ended, ended.code)
    match outcome.kind:
        case "done":
            return Completed(message=outcome.message or f"{name}: done")
        case "unchanged":
            return Completed(name=CACHED, message=outcome.message or f"{name}: unchanged")
        case "user_error":
            return Failed(name=USER_ERROR, message=f"{name}: {outcome.message or _find_message(ended)}")
        case "busy":
            return Failed(name=BUSY, message=f"{name}: {describe_busy(context.root, context.busy_timeout_s)}")
        case "unavailable":
            return Failed(name=UNAVAILABLE, message=f"{name}: {outcome.message}")
        case "command_failed":
            return _describe_exit(name, ended, outcome.code or 1)


def _describe_exit(name: str, ended: Ended, code: int) -> State[Any]:
    signum = -code if code < 0 else code - 128  # 128 + n: as shells, and our stages on SIGTERM, report signal n
    if signum in signal.valid_signals():
        return Failed(name=KILLED, message=f"{name}: ended by signal {signum} ({signal.strsignal(signum)})")
    return Failed(message=f"{name}: exited with {code}: {_find_message(ended)}")


def _find_message(ended: Ended) -> str:
    """Return what the command said last: its `error: ...` line, else its last line."""
    for line in reversed(ended.err_lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return ended.err_lines[-1] if ended.err_lines else "no message"
