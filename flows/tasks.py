"""One Prefect task per DVC stage, and one before them that brings data/ in order.

DVC alone decides what is stale; Prefect's own cache stays off.

Retries, only where a second try can end otherwise. A stage is a function of its inputs: an error of the user
or of ours comes back, and a time limit is a limit. What remains:
- data: a remote that cannot be read now may answer in a minute, so two more tries;
- train and answer: after a kill they go on from what they have kept, so one more try finishes what the first began.
  The other stages start from nothing and would meet the same lack of memory.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows.execution.pools import run_on_pool
from flows.execution.steps import BUSY, KILLED, UNAVAILABLE, USER_ERROR, StageContext, run_step
from pipeline.stages import STAGES

GPU_STAGES = frozenset({"warmup", "train", "answer"})
RESUMED_STAGES = frozenset({"train", "answer"})
_USER_ERROR_CODE = 2


def _says_something_new(record: logging.LogRecord) -> bool:
    """Drop Prefect's error "Task run failed with state": "Finished in state" repeats it; why it tries again stays."""
    return record.levelno < logging.ERROR or not record.getMessage().startswith("Task run failed with state")


logging.getLogger("prefect.task_runs").addFilter(_says_something_new)


def can_retry(of_task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Say whether a second try can end otherwise."""
    return state.name in {KILLED, UNAVAILABLE}


@task(
    name="data", task_run_name="data", retries=2, retry_delay_seconds=30, retry_condition_fn=can_retry,
    cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
def data_task(context: StageContext) -> State[Any]:
    """Make data/ what data.dvc names (see flows.execution.data)."""
    return run_step("data", ["flows.execution.data"], context)


def _build_stage_task(stage: str) -> Task[[StageContext], State[Any]]:
    @task(
        name=stage, task_run_name=stage, retries=1 if stage in RESUMED_STAGES else 0, retry_condition_fn=can_retry,
        cache_policy=NO_CACHE, persist_result=False,
    )  # fmt: skip
    def run_stage(context: StageContext) -> State[Any]:
        if context.placement == "pools" and stage in GPU_STAGES:
            return run_on_pool(stage, context)
        return repro(stage, context)

    return run_stage


STAGE_TASKS: Mapping[str, Task[[StageContext], State[Any]]] = {stage: _build_stage_task(stage) for stage in STAGES}


def repro(stage: str, context: StageContext) -> State[Any]:
    """Let DVC bring one stage up to date here, and say how it went.

    Args:
        stage: what DVC calls it: its name, or `folder/dvc.yaml:name` for one of another file.
        context: where and how long.
    """
    return run_step(stage, ["flows.execution.repro", stage], context)


def report_end(state: State[Any]) -> int:
    """Return the exit code of a flow run that ended so: 0 done, 2 the user's to fix, 1 anything else; say why."""
    if state.is_completed():
        return 0
    sys.stderr.write(f"error: {state.message}\n")
    return _USER_ERROR_CODE if state.name in {USER_ERROR, BUSY} else 1
