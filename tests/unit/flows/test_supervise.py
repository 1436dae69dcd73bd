"""No process outlives its run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.environment import child_environment
from flows.execution.supervise import Ended, TimeLimitError, run_supervised

pytestmark = pytest.mark.slow  # chains of processes that are waited for
CHECKOUT = Path(__file__).resolve().parents[3]
# Starts a grandchild in a session of its own that ignores SIGTERM, tells its pid, and sleeps.
STUBBORN_TREE = """
import pathlib, subprocess, sys, time
child = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
grandchild = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
grandchild.stdout.readline()
pathlib.Path("pid").write_text(str(grandchild.pid))
time.sleep(float(sys.argv[1]))
"""


def _run(code: str, *arguments: str, cwd: Path, timeout_s: float | None = 60) -> Ended:
    return run_supervised(
        [sys.executable, "-c", code, *arguments],
        on_line=lambda line: None,
        cwd=cwd,
        env=child_environment(),
        timeout_s=timeout_s,
        grace_s=0.5,
    )


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _await_pid(path: Path) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.05)
    raise AssertionError("the command never started")


def _await_death(pid: int, within_s: float = 15) -> bool:
    end = time.monotonic() + within_s
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not _is_alive(pid)


def test_lines_arrive_in_order_and_streams_stay_apart(tmp_path: Path) -> None:
    heard: list[str] = []
    code = "import sys; print('one'); print('two'); sys.stderr.write('oops\\n'); sys.exit(2)"
    ended = run_supervised(
        [sys.executable, "-c", code],
        on_line=heard.append,
        cwd=tmp_path,
        env=child_environment(),
        timeout_s=60,
    )
    assert ended == Ended(code=2, out_lines=("one", "two"), err_lines=("oops",))
    assert sorted(heard) == ["one", "oops", "two"]


def test_death_by_signal_becomes_128_plus_its_number(tmp_path: Path) -> None:
    assert _run("import os; os.kill(os.getpid(), 9)", cwd=tmp_path).code == 137


def test_a_missing_program_is_one_line(tmp_path: Path) -> None:
    ended = run_supervised(["no-such-program"], on_line=lambda line: None, cwd=tmp_path, env=child_environment())
    assert ended.code == 127
    assert ended.err_lines == ("no-such-program: No such file or directory",)


def test_what_a_finished_command_left_behind_is_ended(tmp_path: Path) -> None:
    assert _run(STUBBORN_TREE, "0", cwd=tmp_path).code == 0
    assert not _is_alive(_await_pid(tmp_path / "pid"))


def test_the_time_limit_ends_stubborn_descendants(tmp_path: Path) -> None:
    with pytest.raises(TimeLimitError, match="took longer than 2 s"):
        _run(STUBBORN_TREE, "300", cwd=tmp_path, timeout_s=2)
    assert not _is_alive(_await_pid(tmp_path / "pid"))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_the_command_dies_with_the_process_that_ran_it(tmp_path: Path, signum: signal.Signals) -> None:
    caller = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from flows.environment import child_environment\n"
        "from flows.execution.supervise import run_supervised\n"
        "run_supervised([sys.executable, '-c', sys.argv[1], '300'], on_line=print, cwd=Path.cwd(),"
        " env=child_environment(), grace_s=0.5)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", caller, STUBBORN_TREE],
        cwd=tmp_path,
        env=child_environment(PYTHONPATH=str(CHECKOUT)),
        stderr=subprocess.DEVNULL,
    )
    grandchild = _await_pid(tmp_path / "pid")
    os.kill(process.pid, signum)
    process.wait(timeout=20)
    assert _await_death(grandchild)
