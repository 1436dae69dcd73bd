"""`python -m pipeline STAGE`: run one stage in the current folder, as dvc.yaml does.

Exit codes: 0 done, 2 something the user can fix (one line on stderr), 130 interrupted, 143 terminated. A
fault of ours keeps its traceback and exits 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.process.interpreter import ensure_packages

ensure_packages("pipeline")  # before the first import of a package

from pipeline.config import load_params  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from pipeline.process.environment import limit_threads, run_to_exit_code  # noqa: E402
from pipeline.runs.metrics_files import restore_metrics  # noqa: E402
from pipeline.stages import STAGES  # noqa: E402
from pipeline.workspace import Workspace  # noqa: E402

logger = logging.getLogger("pipeline")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Run one stage in the current folder.")
    parser.add_argument("stage", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
    options = parser.parse_args(arguments)
    return run_to_exit_code(lambda: run_stage(options.stage, options.params, Path.cwd()))


def run_stage(stage: str, params_path: Path, root: Path) -> dict[str, float]:
    """Run one stage of a checkout; its figures go to artifacts/metrics/STAGE.json and to the tracking store.

    What is true of this run alone goes to artifacts/provenance/STAGE.json, which neither git nor DVC tracks.

    Raises:
        RegionR1Error: unknown stage, bad parameters, or whatever the stage finds wrong.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; there are {', '.join(STAGES)}")
    restore_metrics(root, stage)
    params = load_params(params_path)
    limit_threads(params.threads)
    workspace = Workspace.at(root)
    from pipeline.files.store import sweep, write_json
    from pipeline.runs.tracking import stage_run

    sweep(workspace.artifacts_dir)  # what a killed run left half-written
    started = time.monotonic()
    logger.info("%s: starts", stage)
    with stage_run(stage, params, root) as run:
        figures = STAGES[stage](params, workspace, run)
        run.log_metrics(figures)
        run.note({"stage_seconds": time.monotonic() - started})
    write_json(workspace.metrics_path(stage), figures)
    facts = {**run.facts, "params": params.model_dump(mode="json", by_alias=True), "figures": figures}
    write_json(workspace.provenance_path(stage), facts)
    logger.info("%s: done in %.1f s", stage, time.monotonic() - started)
    return figures


if __name__ == "__main__":
    sys.exit(main())
