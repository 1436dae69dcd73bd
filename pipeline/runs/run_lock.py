"""One flow run at a time in a checkout, and who it is that works there now.

A flow run holds `artifacts/run.lock` (flock, which the kernel drops with the process) from its first stage to its
last and writes beside it where it is. What knows nothing of it (`dvc repro`, `dvc add`) is found by DVC's own locks.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from pipeline.errors import BusyError, write_on_one_line
from pipeline.files.store import write_json
from pipeline.workspace import Workspace

_POLL_S = 1.0
# Who only looks whether the lock is held has it for an instant.
_GLANCE_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process that works in the checkout.

    Attributes:
        pid: its number.
        command: its command line.
        since: when it began, ISO 8601 in local time; None if the system does not tell.
        stage: the stage that it is in, as far as known.
    """

    pid: int
    command: str
    since: str | None
    stage: str | None

    def describe(self) -> str:
        """Return it in words."""
        since = "" if self.since is None else f", since {self.since.replace('T', ' ')}"
        stage = "" if self.stage is None else f", in stage {self.stage}"
        return f"pid {self.pid} ({self.command}){since}{stage}"

    def as_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return asdict(self)


class RunLock:
    """The lock while it is held."""

    def __init__(self, state_path: Path) -> None:
        self._state_path = state_path

    def enter(self, stage: str | None) -> None:
        """Note which stage is going on."""
        write_json(self._state_path, _describe_process(os.getpid(), stage).as_json())


@contextmanager
def hold_run_lock(root: Path, *, wait_s: float, say: Callable[[str], object]) -> Iterator[RunLock]:
    """Hold the checkout for one flow run.

    Args:
        root: the checkout.
        wait_s: how long to wait for another run to end.
        say: told once whom it waits for.

    Raises:
        BusyError: another run holds it; the message says who.
    """
    path = Workspace.at(root).run_lock_path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        deadline, is_reported = time.monotonic() + max(wait_s, _GLANCE_S), False
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise BusyError(describe_busy(root, wait_s))
            if wait_s and not is_reported and (holder := find_holder(root)):
                is_reported = True
                say(f"waiting for {holder.describe()}")
            time.sleep(min(_POLL_S, _GLANCE_S / 4))
        lock = RunLock(path.with_suffix(".json"))
        lock.enter(None)
        try:
            yield lock
        finally:
            path.with_suffix(".json").unlink(missing_ok=True)


def find_holder(root: Path) -> Holder | None:
    """Return who works in a checkout now: a flow run, or a DVC command that a stage or the checkout is locked by."""
    return _find_flow_run(root) or _find_stage_of_dvc(root) or _find_dvc(root)


def describe_busy(root: Path, waited_s: float) -> str:
    """Return the line for a run that another one kept from starting."""
    holder = find_holder(root)
    who = "another run, or DVC's .dvc/tmp/rwlock is left of one" if holder is None else holder.describe()
    waited = f" after {waited_s:g} s" if waited_s else ""
    return f"{root} is busy{waited}: {who}; wait until it ends, or set flow.busy_timeout_s"


def _find_flow_run(root: Path) -> Holder | None:
    path = Workspace.at(root).run_lock_path
    if not _is_locked(path):
        return None
    try:
        return Holder(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # it starts or ends just now
        return None


def _find_stage_of_dvc(root: Path) -> Holder | None:
    """Return who writes outputs according to DVC's rwlock, which names a process for each path.

    A pid that a process got after the file was written is not that of its writer, who is gone.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    try:
        written = json.loads(path.read_text(encoding="utf-8")).get("write", {})
        written_at = path.stat().st_mtime
    except (OSError, ValueError):
        return None
    for info in written.values():
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(info["pid"]).create_time() <= written_at:
                return _describe_process(info["pid"], _find_writer(root, written))
    return None


def _find_dvc(root: Path) -> Holder | None:
    path = root / ".dvc" / "tmp" / "lock"
    if not _is_locked(path):
        return None
    try:
        return _describe_process(int(path.read_text(encoding="ascii")), None)
    except (OSError, ValueError):
        return None


def _find_writer(root: Path, written: Iterable[str]) -> str | None:
    """Return the stage of dvc.yaml that writes one of these paths."""
    try:
        stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        stage_of = {str(root / out): str(name) for name, stage in stages.items() for out in stage["outs"]}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return next((stage_of[path] for path in written if path in stage_of), None)


def _describe_process(pid: int, stage: str | None) -> Holder:
    try:
        process = psutil.Process(pid)
        since = datetime.fromtimestamp(process.create_time()).isoformat(timespec="seconds")
        command = write_on_one_line(" ".join(process.cmdline()))
        return Holder(pid=pid, command=command, since=since, stage=stage)
    except psutil.Error:
        return Holder(pid=pid, command="command not known", since=None, stage=stage)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
