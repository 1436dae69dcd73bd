"""The flow: data/, then every DVC stage in order under one MLflow run, then the result as a page of its own.

Runs on Prefect's ephemeral API (`region-r1 run`), and on a server as the deployments of infra/prefect.yaml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.environment import find_root
from flows.launch import main
from flows.summary import publish_summary
from flows.tasks import CACHED, STAGE_TASKS, USER_ERROR, StageContext, data_task, report_end, repro
from pipeline.config import Params, load_params
from pipeline.errors import RegionR1Error
from pipeline.tracking import parent_run

__all__ = ["main", "region_r1", "region_r1_stage"]


@flow(name="region-r1", persist_result=False)
def region_r1(only: str | None = None) -> State[Any]:
    """Bring every stage up to date.

    Args:
        only: one stage to bring up to date instead of all; its inputs must be there.
    """
    root = find_root()
    try:
        params = load_params(root / "params.yaml")
        stages = _select(only)
        with parent_run(flow_run.get_name() or "region-r1", root) as run_id:
            return _run_stages(root, params, stages, run_id)
    except _StageStop as stop:
        return stop.state
    except RegionR1Error as error:
        return Failed(name=USER_ERROR, message=str(error))


@flow(name="region-r1-stage", persist_result=False)
def region_r1_stage(stage: str, parent_run_id: str, timeout_s: float) -> State[Any]:
    """Bring one stage up to date on this worker's machine; called when flow.placement is `pools`."""
    return repro(stage, StageContext(root=find_root(), parent_run_id=parent_run_id, timeout_s=timeout_s))


class _StageStop(Exception):
    def __init__(self, state: State[Any]) -> None:
        self.state = state
        super().__init__(state.message)


def _select(only: str | None) -> list[str]:
    if only is None:
        return list(STAGE_TASKS)
    if only not in STAGE_TASKS:
        raise RegionR1Error(f"unknown stage {only!r}; there are {', '.join(STAGE_TASKS)}")
    return [only]


def _run_stages(root: Path, params: Params, stages: list[str], run_id: str) -> State[Any]:
    context = StageContext(
        root=root,
        parent_run_id=run_id,
        placement=params.flow.placement,
        timeout_s=params.flow.stage_timeout_s,
    )
    states = {"data": data_task(context, return_state=True)}
    _check(states["data"])
    for stage in stages:
        states[stage] = STAGE_TASKS[stage](context, return_state=True)
        _check(states[stage])
    publish_summary(root, run_id, {name: state.name or "Completed" for name, state in states.items()})
    num_cached = sum(states[stage].name == CACHED for stage in stages)
    message = f"{len(stages)} stages: {num_cached} unchanged, {len(stages) - num_cached} ran"
    get_run_logger().info("%s; MLflow run %s", message, run_id)
    return Completed(message=message)


def _check(state: State[Any]) -> None:
    if not state.is_completed():
        raise _StageStop(Failed(name=state.name, message=state.message))


def run_here(arguments: list[str] | None = None) -> int:
    """Run the flow in this process (`python -m flows.region_r1`); exit codes as of `region-r1 run`."""
    parser = argparse.ArgumentParser(description=run_here.__doc__)
    parser.add_argument("--only", metavar="STAGE")
    options = parser.parse_args(arguments)
    return report_end(region_r1(only=options.only, return_state=True))


if __name__ == "__main__":
    sys.exit(run_here())
