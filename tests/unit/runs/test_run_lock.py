"""One flow run at a time in a checkout; who else works there is named."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import BusyError
from pipeline.runs import run_lock
from pipeline.runs.run_lock import find_holder, hold_run_lock

CHECKOUT = Path(__file__).resolve().parents[3]
HOLD = """
import sys
from pathlib import Path
from pipeline.runs.run_lock import hold_run_lock
with hold_run_lock(Path(sys.argv[1]), wait_s=0, say=print) as lock:
    lock.enter("train")
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _another_run(root: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def _hold(root: Path, wait_s: float = 0.0) -> list[str]:
    lines: list[str] = []
    with hold_run_lock(root, wait_s=wait_s, say=lines.append):
        return lines


def test_a_second_run_is_refused_with_the_first_ones_pid_command_start_and_stage(tmp_path: Path) -> None:
    with _another_run(tmp_path) as process:
        with pytest.raises(BusyError) as refusal:
            _hold(tmp_path)
        message = str(refusal.value)
        assert f"pid {process.pid} ({sys.executable}" in message
        assert ", since 20" in message
        assert ", in stage train; wait until it ends, or set flow.busy_timeout_s" in message
        assert "\n" not in run_lock.write_on_one_line(message)
    assert _hold(tmp_path) == []
    assert find_holder(tmp_path) is None


def test_a_second_run_waits_as_long_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_GLANCE_S", 0.2)
    with _another_run(tmp_path), pytest.raises(BusyError, match=r"busy after 0\.3 s: pid"):
        _hold(tmp_path, wait_s=0.3)
    with _another_run(tmp_path) as process:
        assert process.stdin is not None
        process.stdin.close()
        lines = _hold(tmp_path, wait_s=20)
    assert all(line.startswith(f"waiting for pid {process.pid} (") for line in lines)


def test_a_killed_run_holds_nothing(tmp_path: Path) -> None:
    with _another_run(tmp_path) as process:
        process.kill()
        process.wait(20)
        assert find_holder(tmp_path) is None
        assert _hold(tmp_path) == []


@pytest.fixture
def dvc_tmp(tmp_path: Path) -> Path:
    folder = tmp_path / ".dvc" / "tmp"
    folder.mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text("stages: {warmup: {cmd: x, outs: [artifacts/sft]}}\n")
    return folder


def _write_rwlock(root: Path, pid: int) -> None:
    written = {str(root / "artifacts" / "sft"): {"pid": pid, "cmd": "dvc repro"}}
    (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"write": written}))


def test_a_dvc_command_is_found_by_what_it_writes(tmp_path: Path, dvc_tmp: Path) -> None:
    _write_rwlock(tmp_path, os.getpid())
    holder = find_holder(tmp_path)
    assert holder is not None
    assert (holder.pid, holder.stage) == (os.getpid(), "warmup")


def test_a_dead_process_in_dvcs_lock_holds_nothing(tmp_path: Path, dvc_tmp: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _write_rwlock(tmp_path, ended.pid)
    assert find_holder(tmp_path) is None


def test_a_pid_that_was_given_to_a_later_process_holds_nothing(tmp_path: Path, dvc_tmp: Path) -> None:
    _write_rwlock(tmp_path, os.getpid())
    os.utime(dvc_tmp / "rwlock", (0, 0))
    assert find_holder(tmp_path) is None
    assert ".dvc/tmp/rwlock is left of one" in run_lock.describe_busy(tmp_path, 0)


def test_a_dvc_command_that_locks_the_checkout_is_found(tmp_path: Path, dvc_tmp: Path) -> None:
    from dvc.lock import Lock

    lock = Lock(str(dvc_tmp / "lock"))
    with lock:
        holder = find_holder(tmp_path)
        assert holder is not None
        assert (holder.pid, holder.stage) == (os.getpid(), None)
    assert find_holder(tmp_path) is None
