"""The flow of the ablations: every arm's DVC stage under one MLflow run, then the tables.

DVC decides which arm is stale, as it does for the pipeline's stages; an arm that was killed goes on from what it had
finished. The first arm that fails stops the flow; run again, it goes on there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.environment import find_root
from flows.execution.pools import run_on_pool
from flows.execution.steps import CACHED, StageContext, StepStop, check_step, describe_stop
from flows.tasks import can_retry, report_end, repro
from pipeline.ablation.arms import ARMS, find_arm
from pipeline.ablation.page import write_summary
from pipeline.ablation.summary import summarise
from pipeline.config import Params, load_params_for_dvc
from pipeline.errors import RegionR1Error
from pipeline.runs.run_lock import RunLock, hold_run_lock
from pipeline.runs.tracking import parent_run
from pipeline.workspace import Workspace

ARTIFACT_KEY = "region-r1-ablation"


@task(
    name="arm", task_run_name="{arm}", retries=1, retry_condition_fn=can_retry,
    cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
def arm_task(arm: str, context: StageContext) -> State[Any]:
    """Bring one arm up to date; after a kill it goes on from its last checkpoint, so one more try can end it."""
    address = f"ablation/dvc.yaml:arm@{arm}"
    return run_on_pool(address, context) if context.placement == "pools" else repro(address, context)


@flow(name="region-r1-ablation", persist_result=False)
def region_r1_ablation(arms: list[str] | None = None) -> State[Any]:
    """Bring the arms of the ablations up to date and set them side by side.

    Args:
        arms: some of them instead of all; the tables show what is up to date.
    """
    root = find_root()
    try:
        params = load_params_for_dvc(root / "params.yaml")
        names = [find_arm(name).name for name in arms or ARMS]
        workspace = Workspace.at(root)
        if not workspace.sft_dir.is_dir():
            raise RegionR1Error(f"{workspace.sft_dir} is missing; `region-r1 run` first")
        with (
            hold_run_lock(root, wait_s=params.flow.busy_timeout_s, say=get_run_logger().warning) as lock,
            parent_run(flow_run.get_name() or "region-r1-ablation", root) as run_id,
        ):
            return _run_arms(StageContext.of(root, params, run_id), params, names, lock)
    except (StepStop, RegionR1Error) as error:
        return describe_stop(error)


def _run_arms(context: StageContext, params: Params, names: Sequence[str], lock: RunLock) -> State[Any]:
    logger = get_run_logger()
    seconds: list[float] = []
    for number, name in enumerate(names):
        left = f", at most {_estimate_min(seconds, len(names) - number)} min left" if seconds else ""
        logger.info("arm %d of %d: %s%s", number + 1, len(names), name, left)
        lock.enter(f"ablate {name}")
        started = time.monotonic()
        state = check_step(arm_task(name, context, return_state=True))
        if state.name != CACHED:
            seconds.append(time.monotonic() - started)
    workspace = Workspace.at(context.root)
    markdown = write_summary(summarise(params, workspace), workspace)
    create_markdown_artifact(key=ARTIFACT_KEY, markdown=markdown, description="Region-R1: ablations")
    message = f"{len(names)} arms: {len(names) - len(seconds)} unchanged, {len(seconds)} ran"
    logger.info("%s; MLflow run %s", message, context.parent_run_id)
    return Completed(message=message)


def _estimate_min(seconds: Sequence[float], num_left: int) -> int:
    """Return the minutes that the arms left would take if none of them were unchanged."""
    return max(1, round(sum(seconds) / len(seconds) * num_left / 60.0))


def run_here(arguments: list[str] | None = None) -> int:
    """Run the flow in this process (`python -m flows.ablation`); exit codes as of `region-r1 ablate`."""
    parser = argparse.ArgumentParser(description=run_here.__doc__)
    parser.add_argument("--arms", metavar="A,B", help="some arms instead of all")
    options = parser.parse_args(arguments)
    return report_end(region_r1_ablation(arms=options.arms.split(",") if options.arms else None, return_state=True))


if __name__ == "__main__":
    sys.exit(run_here())
