"""`python -m flows.execution.data`: make data/ be what data.dvc names, and never the other way round.

In this order: leave it when it is right; check it out of the cache; pull it from the default remote; draw the
demo world again. Different bytes stop the run: accepting them is a person's decision (`dvc add data`).
Exit codes: 0 done, 2 something the user can fix (one line on stderr), 75 the remote could not be read.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.environment import child_environment, find_root
from flows.execution.outcome import Kind, Outcome
from pipeline.errors import write_on_one_line
from pipeline.runs.run_lock import describe_busy

DATA_FILE = "data.dvc"
UNCHANGED = "data/ is as data.dvc says"
_CODES: dict[Kind, int] = {"user_error": 2, "busy": 2, "unavailable": 75}  # 75: EX_TEMPFAIL of sysexits.h


class DataStepError(Exception):
    """data/ cannot be made what data.dvc names; the text is one line.

    Args:
        reason: why, in one line.
        kind: what a flow makes of it.
    """

    def __init__(self, reason: str, *, kind: Kind = "user_error") -> None:
        self.kind: Kind = kind
        super().__init__(reason)


def materialise_data(root: Path, generate: Callable[[Path], None]) -> str:
    """Bring data/ to the state that data.dvc names and return one line on how.

    Raises:
        DataStepError: data/ differs from data.dvc, or there is no data.dvc.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    if (root / "data").is_symlink():  # DVC adds no link, so its usual advice would lead nowhere
        raise DataStepError('data/ is a link; docs/data-format.md, "Data on another disk", says what works')
    if not (root / DATA_FILE).is_file():
        raise DataStepError(f"{DATA_FILE} is missing: make data/ (`region-r1 demo make-data`), then `dvc add data`")
    try:
        with Repo(str(root)) as repo:
            return _materialise(repo, root, generate)
    except LockError as error:
        raise DataStepError(describe_busy(root, 0), kind="busy") from error
    except DvcException as error:
        raise DataStepError(f"dvc: {write_on_one_line(error)}") from error
    except OSError as error:
        raise DataStepError(f"{error.filename or 'data/'}: {error.strerror or error}") from error


def _materialise(repo: Any, root: Path, generate: Callable[[Path], None]) -> str:  # noqa: ANN401 - dvc is untyped
    (out,) = repo.stage.load_one(DATA_FILE).outs
    wanted: str = out.hash_info.value
    is_cached = not out.changed_cache()
    if out.exists and not out.is_empty:
        _check_is(wanted, out, "data/ is not")
        if is_cached:
            return f"{UNCHANGED} (md5 {wanted})"
        _commit(repo, out)
        return f"data/ matches data.dvc (md5 {wanted}); put into the cache"
    if is_cached:
        repo.checkout([DATA_FILE], force=True)
        return f"data/ checked out of the cache (md5 {wanted})"
    if _pull(repo):
        _check_is(wanted, out, "data/ as pulled is not")
        return f"data/ pulled from the default remote (md5 {wanted})"
    generate(root)
    _check_is(wanted, out, "data/ as drawn again from params.yaml is not")
    _commit(repo, out)
    return f"data/ drawn again, byte for byte (md5 {wanted})"


def _check_is(wanted: str, out: Any, complaint: str) -> None:  # noqa: ANN401 - dvc is untyped
    found: str = out.get_hash().value
    if found != wanted:
        raise DataStepError(
            f"{complaint} what data.dvc names: md5 {found} found, {wanted} expected; "
            "run `dvc add data` to accept it, or move data/ away to get the named version back"
        )


def _commit(repo: Any, out: Any) -> None:  # noqa: ANN401 - dvc is untyped
    from dvc.repo import lock_repo

    with lock_repo(repo):
        out.commit(relink=False)  # fills the cache; data.dvc itself is not written


def _pull(repo: Any) -> bool:  # noqa: ANN401 - dvc is untyped
    from dvc.exceptions import CheckoutError

    if not repo.config["core"].get("remote"):
        return False
    try:
        repo.pull([DATA_FILE])
    except CheckoutError:  # reached, but it does not have them
        return False
    except Exception as error:  # whatever the remote's client library raises
        reason = f"the default DVC remote cannot be read: {write_on_one_line(error) or type(error).__name__}"
        raise DataStepError(reason, kind="unavailable") from error
    return True


def _generate_demo(root: Path) -> None:
    command = [str(Path(sys.executable).with_name("region-r1")), "demo", "make-data"]
    ended = subprocess.run(command, cwd=root, env=child_environment(), check=False)
    if ended.returncode:
        raise DataStepError(f"`region-r1 demo make-data` exited with {ended.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step in the checkout that the current folder belongs to."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.execution.data", description="Make data/ what data.dvc names."
    )
    parser.add_argument("--outcome", type=Path, metavar="FILE", help="where a flow wants the outcome, as JSON")
    options = parser.parse_args(arguments)
    try:
        message = materialise_data(find_root(), _generate_demo)
        sys.stdout.write(message + "\n")
        outcome = Outcome(kind="unchanged" if message.startswith(UNCHANGED) else "done", message=message)
    except DataStepError as error:
        sys.stderr.write(f"error: {error}\n")
        outcome = Outcome(kind=error.kind, message=str(error))
    if options.outcome:
        outcome.write(options.outcome)
    return _CODES.get(outcome.kind, 0)


if __name__ == "__main__":
    sys.exit(main())
