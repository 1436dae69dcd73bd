"""`python -m pipeline.ablation ARM`: train and test one arm in the current folder, as ablation/dvc.yaml does.

Exit codes are those of `python -m pipeline STAGE`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.process.interpreter import ensure_packages

ensure_packages("pipeline.ablation")  # before the first import of a package

from pipeline.ablation.arms import ARMS, apply_arm, find_arm  # noqa: E402
from pipeline.config import load_params  # noqa: E402
from pipeline.process.environment import limit_threads, run_to_exit_code  # noqa: E402
from pipeline.workspace import Workspace  # noqa: E402

logger = logging.getLogger("pipeline")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the arm that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.ablation", description="Train and test one arm.")
    parser.add_argument("arm", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
    options = parser.parse_args(arguments)
    return run_to_exit_code(lambda: run_named_arm(options.arm, options.params, Path.cwd()))


def run_named_arm(name: str, params_path: Path, root: Path) -> None:
    """Run one arm of a checkout under an MLflow run of its own, with a run below it for each seed.

    Raises:
        RegionR1Error: unknown arm, bad parameters, or whatever the arm finds missing.
    """
    arm = find_arm(name)
    params = load_params(params_path)
    limit_threads(params.threads)
    own = apply_arm(arm, params, params.seed)
    from pipeline.ablation.run import run_arm
    from pipeline.runs.tracking import stage_run

    started = time.monotonic()
    logger.info("ablate %s: %d seeds of %d steps", name, len(params.ablation.seeds), params.ablation.max_steps)
    with stage_run(f"ablate-{name}", own, root) as run:
        figures = run_arm(arm, params, Workspace.at(root), run)
        run.log_metrics({**figures, "stage_seconds": time.monotonic() - started})
    logger.info("ablate %s: done in %.1f s", name, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
