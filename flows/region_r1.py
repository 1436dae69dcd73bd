"""The flow: data/, then every DVC stage in order under one MLflow run, then the result as a page of its own.

Runs on Prefect's ephemeral API (`region-r1 run`), and on a server as the deployments of infra/prefect.yaml.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.environment import find_root
from flows.execution.steps import CACHED, StageContext, StepStop, check_step, describe_stop
from flows.launch import main
from flows.summary import publish_summary
from flows.tasks import STAGE_TASKS, data_task, report_end, repro
from pipeline.config import load_params_for_dvc
from pipeline.errors import RegionR1Error
from pipeline.runs.run_lock import RunLock, hold_run_lock
from pipeline.runs.tracking import parent_run

__all__ = ["main", "region_r1", "region_r1_stage"]


@flow(name="region-r1", persist_result=False)
def region_r1(only: str | None = None) -> State[Any]:
    """Bring every stage up to date.

    Args:
        only: one stage to bring up to date instead of all; its inputs must be there.
    """
    root = find_root()
    try:
        params = load_params_for_dvc(root / "params.yaml")
        stages = _select(only)
        with (
            hold_run_lock(root, wait_s=params.flow.busy_timeout_s, say=get_run_logger().warning) as lock,
            parent_run(flow_run.get_name() or "region-r1", root) as run_id,
        ):
            return _run_stages(StageContext.of(root, params, run_id), stages, lock)
    except (StepStop, RegionR1Error) as error:
        return describe_stop(error)


@flow(name="region-r1-stage", persist_result=False)
def region_r1_stage(stage: str, parent_run_id: str, timeout_s: float, busy_timeout_s: float) -> State[Any]:
    """Bring one stage up to date on this worker's machine; called when flow.placement is `pools`."""
    context = StageContext(
        root=find_root(), parent_run_id=parent_run_id, timeout_s=timeout_s, busy_timeout_s=busy_timeout_s
    )
    return repro(stage, context)


def _select(only: str | None) -> list[str]:
    if only is None:
        return list(STAGE_TASKS)
    if only not in STAGE_TASKS:
        raise RegionR1Error(f"unknown stage {only!r}; there are {', '.join(STAGE_TASKS)}")
    return [only]


def _run_stages(context: StageContext, stages: list[str], lock: RunLock) -> State[Any]:
    lock.enter("data")
    states = {"data": check_step(data_task(context, return_state=True))}
    for stage in stages:
        lock.enter(stage)
        states[stage] = check_step(STAGE_TASKS[stage](context, return_state=True))
    run_id = context.parent_run_id
    publish_summary(context.root, run_id, {name: state.name or "Completed" for name, state in states.items()})
    num_cached = sum(states[stage].name == CACHED for stage in stages)
    message = f"{len(stages)} stages: {num_cached} unchanged, {len(stages) - num_cached} ran"
    get_run_logger().info("%s; MLflow run %s", message, run_id)
    return Completed(message=message)


def run_here(arguments: list[str] | None = None) -> int:
    """Run the flow in this process (`python -m flows.region_r1`); exit codes as of `region-r1 run`."""
    parser = argparse.ArgumentParser(description=run_here.__doc__)
    parser.add_argument("--only", metavar="STAGE")
    options = parser.parse_args(arguments)
    return report_end(region_r1(only=options.only, return_state=True))


if __name__ == "__main__":
    sys.exit(run_here())
