"""No process outlives its run.

`python supervise.py --parent PID [--grace S] -- COMMAND...` runs COMMAND in a session of its own and ends it
with all its descendants, those that left the process group too, when COMMAND ends, when SIGTERM, SIGINT or
SIGHUP arrives, and when the parent dies, by SIGKILL too (PR_SET_PDEATHSIG).
The supervisor is a child subreaper: orphans come back to it, so it finds them all. `run_supervised` is the
caller's side. Standard library only, Linux: it starts in 30 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

GRACE_S = 5.0
TERMINATED_CODE = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a supervised command ended: exit code (128 + n after signal n) and its lines."""

    code: int
    out_lines: tuple[str, ...]
    err_lines: tuple[str, ...]


class TimeLimitError(Exception):
    """A supervised command ran longer than allowed and was ended."""


def supervised_command(command: Sequence[str], *, grace_s: float = GRACE_S) -> list[str]:
    """Return the command line that runs `command` under a supervisor that dies with this process."""
    options = ["--parent", str(os.getpid()), "--grace", str(grace_s)]
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *options, "--", *command]


def end_supervised(process: subprocess.Popen[str], *, grace_s: float = GRACE_S) -> int:
    """Ask a supervisor to end everything below it, and wait until it has."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(2 * grace_s + 10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def run_supervised(
    command: Sequence[str],
    *,
    on_line: Callable[[str], None],
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float | None = None,
    grace_s: float = GRACE_S,
) -> Ended:
    """Run a command to its end and hand on each line as it comes.

    Any exception that reaches the waiting thread (Ctrl-C, Prefect's cancellation, the time limit) ends the
    command and its descendants before it travels on.

    Raises:
        TimeLimitError: `timeout_s` passed.
    """
    process = subprocess.Popen(
        supervised_command(command, grace_s=grace_s),
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    lines: queue.Queue[tuple[bool, str | None]] = queue.Queue()
    pumps = [
        threading.Thread(target=_pump, args=(stream, is_error, lines), daemon=True)
        for stream, is_error in ((process.stdout, False), (process.stderr, True))
    ]
    for pump in pumps:
        pump.start()
    kept: tuple[list[str], list[str]] = ([], [])
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    num_open = len(pumps)
    try:
        while num_open:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeLimitError(f"took longer than {timeout_s:g} s")
            try:  # a short wait lets exceptions in that Prefect sends to this thread
                is_error, line = lines.get(timeout=0.5)
            except queue.Empty:
                continue
            if line is None:
                num_open -= 1
            elif line.strip():
                kept[is_error].append(line)
                on_line(line)
        return Ended(code=process.wait(), out_lines=tuple(kept[False]), err_lines=tuple(kept[True]))
    finally:
        end_supervised(process, grace_s=grace_s)
        for pump in pumps:
            pump.join(timeout=5)


def _pump(stream: IO[str] | None, is_error: bool, lines: queue.Queue[tuple[bool, str | None]]) -> None:
    if stream is not None:
        with stream:
            for line in stream:
                lines.put((is_error, line.rstrip()))
    lines.put((is_error, None))


def supervise(command: Sequence[str], *, parent_pid: int, grace_s: float) -> int:
    """Run `command`, end what is left of it, and return its exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getpgrp() != os.getpid():
        os.setsid()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we could ask to be told
        return TERMINATED_CODE
    watched = {*_STOP_SIGNALS, signal.SIGCHLD}
    mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)

    def prepare_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask_before - _STOP_SIGNALS)

    try:
        child = subprocess.Popen(command, preexec_fn=prepare_child)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        return 127
    codes: dict[int, int] = {}
    stopped = False
    while child.pid not in codes and not stopped:
        stopped = signal.sigwait(watched) in _STOP_SIGNALS
        _reap(codes)
    if stopped and child.pid not in codes:
        _signal([child.pid], signal.SIGTERM)  # first alone: it may want to put things in order
        _wait_until(lambda: child.pid in codes, codes, grace_s)
    _end_descendants(codes, min(grace_s, GRACE_S))
    child.returncode = codes.get(child.pid, TERMINATED_CODE)  # reaped here, not by Popen
    return child.returncode


def _end_descendants(codes: dict[int, int], grace_s: float) -> None:
    _signal(_descendants(), signal.SIGTERM)
    _wait_until(lambda: not _descendants(), codes, grace_s)
    end = time.monotonic() + grace_s
    while (left := _descendants()) and time.monotonic() < end:  # a dying process may have started another
        _signal(left, signal.SIGKILL)
        _wait_until(lambda: not _descendants(), codes, 0.2)


def _wait_until(done: Callable[[], bool], codes: dict[int, int], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    _reap(codes)
    while not done() and (left_s := end - time.monotonic()) > 0:
        signal.sigtimedwait([signal.SIGCHLD], min(left_s, 0.1))
        _reap(codes)


def _reap(codes: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            codes[pid] = code if code >= 0 else 128 - code


def _signal(pids: Sequence[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended while we looked
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    front = [os.getpid()]
    while front:
        front = [child for pid in front for child in children.get(pid, [])]
        found.extend(front)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and supervise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--grace", type=float, default=GRACE_S)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    return supervise(options.command, parent_pid=options.parent, grace_s=options.grace)


if __name__ == "__main__":
    sys.exit(main())
