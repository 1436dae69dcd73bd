"""`region-r1 run` and `region-r1 ablate`: a flow in a process tree of its own that ends as a whole.

The flow on the ephemeral API starts a Prefect server, which would survive a SIGKILL of its flow; the
supervisor ends it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.environment import ROOT_VARIABLE, child_environment, find_root
from flows.execution.supervise import end_supervised, supervised_command

STDERR_FD = 2
FLOW_GRACE_S = 25.0  # longer than a stage's, so that the flow can report how it ended
_CODES = {0, 1, 2}  # of a flow that ended by itself


def main(only: str | None = None, root: Path | None = None) -> int:
    """Run the flow and return its exit code: 0 done, 2 the user's to fix, 130 interrupted, 1 anything else.

    Args:
        only: one stage instead of all.
        root: the checkout; found from the current folder unless told.
    """
    return _launch("flows.region_r1", ["--only", only] if only else [], root or find_root())


def ablate(arms: Sequence[str], root: Path | None = None) -> int:
    """Run the flow of the ablations; standard output stays free for its result. Exit codes as of `main`.

    Args:
        arms: which to bring up to date.
        root: the checkout; found from the current folder unless told.
    """
    return _launch("flows.ablation", ["--arms", ",".join(arms)], root or find_root(), stdout=STDERR_FD)


def _launch(module: str, arguments: Sequence[str], root: Path, stdout: int | None = None) -> int:
    command = [sys.executable, "-m", module, *arguments]
    code_dir = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        supervised_command(command, grace_s=FLOW_GRACE_S),
        cwd=root,
        env=child_environment(**{ROOT_VARIABLE: str(root), "PYTHONPATH": code_dir}),
        stdout=stdout,
        text=True,
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        end_supervised(process, grace_s=FLOW_GRACE_S)
        return 130
    if code not in _CODES:  # it was ended, and may not have closed its MLflow run
        from pipeline.runs.tracking import close_dead_runs

        sys.stderr.write(f"error: the flow ended with code {code}\n")
        close_dead_runs(root)
        return 1
    return code
