"""A stage on a pool: the time in the queue and the time running have limits of their own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed, Running, Scheduled

from flows.execution import pools
from flows.execution.pools import Patience
from flows.execution.steps import StageContext

CONTEXT = StageContext(root=Path(), parent_run_id="r", timeout_s=1000.0, queue_timeout_s=300.0)


def test_the_queue_has_a_limit_of_its_own() -> None:
    patience = Patience(CONTEXT, now=50.0)
    assert patience.complain(False, 350.0) is None
    complaint = patience.complain(False, 351.0)
    assert complaint == "no worker of pool gpu took it within 300 s (flow.queue_timeout_s)"


def test_time_in_the_queue_is_not_counted_as_running() -> None:
    patience = Patience(CONTEXT, now=0.0)
    assert patience.complain(False, 299.0) is None
    assert patience.complain(True, 300.0) is None
    assert patience.complain(True, 300.0 + 1000.0 + pools._WORKER_MARGIN_S) is None
    complaint = patience.complain(True, 301.0 + 1000.0 + pools._WORKER_MARGIN_S)
    assert complaint is not None
    assert complaint.endswith("(flow.stage_timeout_s)")


class _Server:
    """Stands in for Prefect's client: says the states one after the other, and notes what is asked of it."""

    def __init__(self, *states: Any) -> None:
        self._states = list(states)
        self.set_to: list[str] = []

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, _: object) -> Any:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, BaseException):
            raise state
        return SimpleNamespace(state=state)

    def read_logs(self, _: object, *, offset: int, limit: int) -> list[Any]:
        return [SimpleNamespace(level=20, message="hello")][offset:]

    def set_flow_run_state(self, _: object, state: Any, *, force: bool) -> None:
        self.set_to.append(state.type.value)


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, _: int, pattern: str, *values: object) -> None:
        self.lines.append(pattern % values)

    def info(self, pattern: str, *values: object) -> None:
        self.lines.append(pattern % values)

    warning = info


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> _Log:
    log = _Log()
    monkeypatch.setattr(pools, "get_run_logger", lambda: log)
    monkeypatch.setattr(pools, "_POLL_S", 0.0)
    return log


def _run(monkeypatch: pytest.MonkeyPatch, server: _Server, context: StageContext = CONTEXT) -> Any:
    handed_over = SimpleNamespace(id=uuid4(), name="train")
    monkeypatch.setattr(pools, "FlowRun", SimpleNamespace)
    monkeypatch.setattr(pools, "run_deployment", lambda *_, **__: handed_over)
    monkeypatch.setattr(pools, "get_client", lambda **_: server)
    return pools.run_on_pool("train", context)


def test_the_stages_state_and_log_are_repeated(monkeypatch: pytest.MonkeyPatch, log: _Log) -> None:
    server = _Server(Scheduled(), Running(), Completed(name="Cached", message="train: unchanged"))
    state = _run(monkeypatch, server)
    assert (state.name, state.message) == ("Cached", "train: unchanged")
    assert "hello" in log.lines
    state = _run(monkeypatch, _Server(Failed(name="Killed", message="train: ended by signal 9")))
    assert (state.name, state.message) == ("Killed", "train: ended by signal 9")


def test_a_stage_that_no_worker_takes_is_cancelled(monkeypatch: pytest.MonkeyPatch, log: _Log) -> None:
    server = _Server(Scheduled())
    context = StageContext(root=Path(), parent_run_id="r", timeout_s=1000.0, queue_timeout_s=0.01)
    monkeypatch.setattr(pools, "_WARN_AFTER_S", 0.0)
    state = _run(monkeypatch, server, context)
    assert state.name == "TimedOut"
    assert "flow.queue_timeout_s" in state.message
    assert server.set_to == ["CANCELLING"]
    assert "still no worker of pool gpu has taken train; is one running?" in log.lines


def test_a_cancelled_flow_takes_its_stage_along(monkeypatch: pytest.MonkeyPatch, log: _Log) -> None:
    server = _Server(Running(), KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        _run(monkeypatch, server)
    assert server.set_to == ["CANCELLING"]


def test_a_server_without_the_deployment_is_the_users_to_fix(monkeypatch: pytest.MonkeyPatch, log: _Log) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ObjectNotFound(KeyError())

    monkeypatch.setattr(pools, "run_deployment", refuse)
    state = pools.run_on_pool("train", CONTEXT)
    assert state.name == "UserError"
    assert "infra/README.md" in (state.message or "")
