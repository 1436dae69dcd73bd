"""`python -m flows.execution.repro STAGE --outcome FILE`: DVC brings a stage up to date; FILE gets the outcome, JSON.

Asked through its Python API, DVC says by classes of exceptions what its command line says in prose and by one exit
code for all. What the stage itself prints goes through unchanged.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import dvc.stage.run
from dvc.config import ConfigError as DvcConfigError
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.stage.cache import StageCache
from dvc.stage.exceptions import StageCmdFailedError
from dvc.utils.serialize import ParseError

from flows.execution.outcome import Outcome
from pipeline.errors import write_on_one_line
from pipeline.runs.metrics_files import restore_metrics

_USER_ERROR_CODE = 2


class _CommandFailed(StageCmdFailedError):  # type: ignore[misc]  # dvc is untyped
    """DVC's own error, with the exit code that DVC only writes into the text."""

    def __init__(self, cmd: str, status: int) -> None:
        self.status = status
        super().__init__(cmd, status)


class _WatchedCache(StageCache):  # type: ignore[misc]  # dvc is untyped
    """DVC's run cache; it remembers whether a stage was taken from it instead of run."""

    was_used = False

    def restore(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - handed on
        super().restore(*arguments, **options)  # raises where it holds nothing
        self.was_used = True


def reproduce(stage: str, root: Path) -> Outcome:
    """Bring one stage up to date and say how that went.

    Args:
        stage: what DVC calls it: its name, or `folder/dvc.yaml:name` for one of another file.
        root: the checkout, which must be the current folder.
    """
    dvc.stage.run.StageCmdFailedError = _CommandFailed
    try:
        with Repo(str(root)) as repo, lock_repo(repo):
            pass  # held by another command now: busy
        # But what a stage has computed is not given up because another command holds the lock when it ends.
        with Repo(str(root), _wait_for_lock=True) as repo:
            repo.stage_cache = cache = _WatchedCache(repo)
            ran = repo.reproduce(stage, single_item=True)
            return Outcome(kind="done" if ran and not cache.was_used else "unchanged")
    except (DvcException, DvcConfigError, OSError) as error:
        return _explain(error, root)
    finally:
        restore_metrics(root, stage)  # where the stage did not come so far as to do it


def _explain(error: BaseException, root: Path) -> Outcome:
    """Return the outcome for what DVC raised; what is neither DVC's own word nor the system's is raised again."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, ParseError):
        cause = cause.__cause__
    match cause:
        case _CommandFailed():
            is_users = cause.status == _USER_ERROR_CODE
            return Outcome(kind="user_error" if is_users else "command_failed", code=cause.status)
        case LockError():
            return Outcome(kind="busy", message=write_on_one_line(cause))
        case FileNotFoundError(filename=str() as name):
            return Outcome(kind="user_error", message=_describe_missing(name, root))
        case OSError():
            where = f"{cause.filename}: " if cause.filename else ""
            return Outcome(kind="user_error", message=f"{where}{cause.strerror or write_on_one_line(cause)}")
        case ParseError():
            return Outcome(kind="user_error", message=_describe_parse_error(cause))
        case DvcException() | DvcConfigError():
            return Outcome(kind="user_error", message=f"DVC: {write_on_one_line(cause)}")
    raise error


def _describe_missing(name: str, root: Path) -> str:
    """Say what writes a file or folder that a stage reads and that is not there."""
    path = Path(name)
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else name
    if shown == "data":
        return "data is missing; `python -m flows.execution.data` makes it what data.dvc names"
    with Repo(str(root)) as repo:
        stages = repo.stage.load_all(str(root / "dvc.yaml"))
        writers = [stage.name for stage in stages for out in stage.outs if path.is_relative_to(out.fs_path)]
    if writers:
        return f"{shown} is missing; run {writers[0]} first (`region-r1 run`)"
    return f"{shown} is missing; params.yaml or dvc.yaml names it"


def _describe_parse_error(error: ParseError) -> str:
    """Return path, line and complaint of a file that DVC cannot read; it names the last two in the parser's error."""
    cause = error.__cause__ or getattr(error, "exc", None)
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    problem, mark = getattr(cause, "problem", None), getattr(cause, "problem_mark", None)
    if problem is None:
        return write_on_one_line(error)
    line = "" if mark is None else f", line {mark.line + 1}"
    return f"{error.path}{line}: {write_on_one_line(problem)}"


def _end(signal_number: int, frame: object) -> None:
    raise SystemExit(128 + signal_number)


def main() -> int:
    """Run the step in the current folder; 0 with an outcome, whatever it says, and 1 without."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.execution.repro", description="Bring a DVC stage up to date."
    )
    parser.add_argument("stage")
    parser.add_argument("--outcome", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # DVC gives its locks back on the way out
    reproduce(options.stage, Path.cwd()).write(options.outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main())
