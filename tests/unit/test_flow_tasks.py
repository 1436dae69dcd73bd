"""How a task reads the end of `dvc repro`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import tasks
from flows.supervise import Ended

CONTEXT = tasks.StageContext(root=Path(), parent_run_id="r", timeout_s=1.0)


def _end(monkeypatch: pytest.MonkeyPatch, code: int, *err_lines: str) -> tuple[str | None, str | None]:
    ended = Ended(code=code, out_lines=(), err_lines=err_lines)
    monkeypatch.setattr(tasks, "_run", lambda *_: ended)
    state = tasks.repro("index", CONTEXT)
    return state.name, state.message


def test_a_missing_model_folder_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "ERROR: failed to reproduce 'index': [Errno 2] No such file or directory: '/somewhere/models/EVA'"
    name, message = _end(monkeypatch, 255, line)
    assert name == tasks.USER_ERROR
    assert message == "index: /somewhere/models/EVA is missing: params.yaml names it, or an earlier stage writes it"


def test_a_stage_that_failed_by_itself_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("error: run prepare first", "ERROR: failed to reproduce 'index': failed to run: x, exited with 2")
    assert _end(monkeypatch, 255, *lines) == (tasks.USER_ERROR, "index: run prepare first")
