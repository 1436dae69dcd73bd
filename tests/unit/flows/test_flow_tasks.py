"""The states that outcomes become, what is tried again, and how long a busy checkout is waited for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from prefect.states import Completed, Failed

from flows.execution import steps
from flows.execution.outcome import Outcome
from flows.execution.steps import StageContext, StepStop, check_step, describe_end, run_step
from flows.execution.supervise import Ended, TimeLimitError
from flows.tasks import STAGE_TASKS, can_retry, report_end

CONTEXT = StageContext(root=Path("/nowhere"), parent_run_id="r", timeout_s=1.0)


def _end(code: int, *err_lines: str, outcome: Outcome | None = None) -> tuple[str | None, str | None]:
    state = describe_end("train", Ended(code=code, out_lines=(), err_lines=err_lines), outcome, CONTEXT)
    return state.name, state.message


def test_outcomes_become_states() -> None:
    assert _end(0, outcome=Outcome(kind="done")) == ("Completed", "train: done")
    assert _end(0, outcome=Outcome(kind="unchanged")) == ("Cached", "train: unchanged")
    assert _end(0, outcome=Outcome(kind="unavailable", message="no route")) == ("Unavailable", "train: no route")
    name, message = _end(0, outcome=Outcome(kind="busy"))
    assert name == "Busy"
    assert (message or "").startswith("train: /nowhere is busy: another run")


def test_a_users_error_is_told_in_the_stages_own_words() -> None:
    outcome = Outcome(kind="user_error", code=2)
    assert _end(0, "error: run prepare first", "2 warnings", outcome=outcome) == (
        "UserError",
        "train: run prepare first",
    )


@pytest.mark.parametrize("code", [-9, 137])
def test_a_signal_is_a_signal_however_the_shell_reports_it(code: int) -> None:
    outcome = Outcome(kind="command_failed", code=code)
    assert _end(0, outcome=outcome) == ("Killed", "train: ended by signal 9 (Killed)")


@pytest.mark.parametrize("code", [1, 127, 255])
def test_an_exit_code_that_is_no_signal_never_poses_as_one(code: int) -> None:
    outcome = Outcome(kind="command_failed", code=code)
    assert _end(0, "ValueError: x", outcome=outcome) == ("Failed", f"train: exited with {code}: ValueError: x")
    assert _end(code, "ValueError: x") == ("Failed", f"train: exited with {code}: ValueError: x")


def test_a_child_that_died_before_it_answered_was_killed() -> None:
    assert _end(137)[0] == "Killed"


def test_only_what_can_end_otherwise_is_tried_again() -> None:
    again = {name for name in ("Killed", "Unavailable", "Busy", "UserError", "TimedOut", "Failed") if _retries(name)}
    assert again == {"Killed", "Unavailable"}


def test_only_stages_that_go_on_after_a_kill_are_tried_again() -> None:
    assert {name: task.retries for name, task in STAGE_TASKS.items() if task.retries} == {"train": 1, "answer": 1}


def _retries(name: str) -> bool:
    arguments: Any = (None, None, Failed(name=name))
    return can_retry(*arguments)


def test_exit_codes_of_a_flow(capsys: pytest.CaptureFixture[str]) -> None:
    ends = [Completed(), *(Failed(name=name, message=name) for name in ("UserError", "Busy", "Killed"))]
    assert [report_end(state) for state in ends] == [0, 2, 2, 1]
    assert capsys.readouterr().err == "error: UserError\nerror: Busy\nerror: Killed\n"


def test_a_failed_step_stops_the_flow_with_its_state() -> None:
    with pytest.raises(StepStop) as stop:
        check_step(Failed(name="TimedOut", message="train: too long"))
    assert (stop.value.state.name, stop.value.state.message) == ("TimedOut", "train: too long")


@pytest.mark.parametrize(("busy_timeout_s", "num_tries", "name"), [(0.0, 1, "Busy"), (60.0, 3, "Completed")])
def test_a_busy_checkout_is_refused_or_waited_for(
    monkeypatch: pytest.MonkeyPatch, busy_timeout_s: float, num_tries: int, name: str
) -> None:
    tries: list[str] = []

    def run_once(step: str, *_: object) -> Any:
        tries.append(step)
        return Completed() if len(tries) == 3 else Failed(name="Busy", message="busy")

    monkeypatch.setattr(steps, "_run_once", run_once)
    monkeypatch.setattr(steps, "_BUSY_POLL_S", 0.0)
    monkeypatch.setattr(steps, "find_holder", lambda _: None)
    monkeypatch.setattr(steps, "get_run_logger", lambda: steps.logging.getLogger("test"))
    context = StageContext(root=Path(), parent_run_id="r", timeout_s=1.0, busy_timeout_s=busy_timeout_s)
    assert run_step("train", [], context).name == name
    assert len(tries) == num_tries


@pytest.mark.parametrize(
    ("end", "name", "num_closed"),
    [(TimeLimitError("took longer than 1 s"), "TimedOut", 1), (137, "Killed", 1), (1, "Failed", 0)],
)
def test_the_mlflow_run_of_a_stage_that_could_not_close_it_is_closed(
    monkeypatch: pytest.MonkeyPatch, end: int | Exception, name: str, num_closed: int
) -> None:
    closed: list[Path] = []

    def run_supervised(*_: object, **__: object) -> Ended:
        if isinstance(end, Exception):
            raise end
        return Ended(code=end, out_lines=(), err_lines=())

    monkeypatch.setattr(steps, "run_supervised", run_supervised)
    monkeypatch.setattr(steps, "close_dead_runs", closed.append)
    monkeypatch.setattr(steps, "get_run_logger", lambda: steps.logging.getLogger("test"))
    assert run_step("train", ["flows.execution.repro", "train"], CONTEXT).name == name
    assert closed == [CONTEXT.root] * num_closed


def test_a_step_answers_through_a_file_whatever_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    class Logger:
        def log(self, level: int, _: str, line: str) -> None:
            heard.append(f"{steps.logging.getLevelName(level)} {line}")

    monkeypatch.setattr(steps, "get_run_logger", Logger)
    context = StageContext(root=tmp_path, parent_run_id="r", timeout_s=60.0)
    with contextlib.chdir(tmp_path):
        state = run_step("data", ["flows.execution.data"], context)
    assert state.name == "UserError"
    assert (state.message or "").startswith("data: data.dvc is missing")
    assert [line.partition(":")[0] for line in heard] == ["ERROR error"]
