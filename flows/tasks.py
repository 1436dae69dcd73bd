"""One Prefect task per DVC stage, and one before them that brings data/ in order.

DVC alone decides what is stale; Prefect's own cache stays off. Tasks return states instead of raising, so a
failure is one line and no traceback:

    Cached       (completed)  DVC found the stage unchanged
    UserError    (failed)     the stage stopped with a message for the user (exit code 2)
    TimedOut     (failed)     flow.stage_timeout_s passed
    Killed       (failed)     the stage died by a signal that we did not send, such as the OOM killer's
    Unavailable  (failed)     the DVC remote could not be read
    Failed       (failed)     anything else: a fault of ours; its traceback is in the log above

Retries, only where a second try can end otherwise. A stage is a function of its inputs: an error of the user
or of ours comes back, and a time limit is a limit. What remains:
- data: a remote that cannot be read now may answer in a minute, so two more tries;
- train: after a kill it goes on from its last checkpoint, so one more try finishes what the first began.
  The other stages start from nothing and would meet the same lack of memory.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import Task, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed

from flows import data as data_step
from flows.environment import PARENT_RUN_VARIABLE, child_environment
from flows.supervise import Ended, TimeLimitError, run_supervised
from pipeline.stages import STAGES

GPU_STAGES = frozenset({"warmup", "train"})
STAGE_DEPLOYMENT = "region-r1-stage/gpu"
CACHED = "Cached"
USER_ERROR = "UserError"
_POLL_S = 2.0
_WARN_AFTER_S = 60.0
_USER_ERROR_CODE = 2
_UNCHANGED = re.compile(r"Stage '.*' (?:didn't change, skipping|is cached - skipping run)")
_STAGE_CODE = re.compile(r"failed to run: .*, exited with (-?\d+)")
# A model folder that params.yaml names, or an output of an earlier stage: DVC looks before the stage can say so.
_MISSING = re.compile(r"failed to reproduce '.*': \[Errno 2\] No such file or directory: '(.*)'")
# What DVC advises people at a prompt to do next.
_ADVICE = re.compile(
    r"To track the changes with git|\s+git add |To enable auto staging|\s+dvc config core|Use `dvc push`"
)
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}


def _says_something_new(record: logging.LogRecord) -> bool:
    """Drop Prefect's "Task run failed with state" for returned states: "Finished in state" repeats it."""
    return not record.getMessage().startswith("Task run failed with state")


logging.getLogger("prefect.task_runs").addFilter(_says_something_new)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageContext:
    """What a stage's task is told: the checkout, MLflow's parent run, where and how long it may run."""

    root: Path
    parent_run_id: str
    placement: Literal["local", "pools"] = "local"
    timeout_s: float


def can_retry(of_task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Say whether a second try can end otherwise."""
    return state.name in {"Killed", "Unavailable"}


@task(
    name="data", task_run_name="data", retries=2, retry_delay_seconds=30, retry_condition_fn=can_retry,
    cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
def data_task(context: StageContext) -> State[Any]:
    """Make data/ what data.dvc names (see flows.data)."""
    command = [sys.executable, "-m", "flows.data"]
    code_dir = str(Path(__file__).resolve().parents[1])
    ended = _run("data", command, context, {"REGION_R1_ROOT": str(context.root), "PYTHONPATH": code_dir})
    if not isinstance(ended, Ended):
        return ended
    if ended.code == 0:
        said = ended.out_lines[-1] if ended.out_lines else ""
        return Completed(name=CACHED if said.startswith(data_step.UNCHANGED) else None, message=said)
    if ended.code == data_step.UNAVAILABLE_CODE:
        return Failed(name="Unavailable", message=f"data: {_find_message(ended)}")
    return _describe_failure("data", ended, ended.code)


def _build_stage_task(stage: str) -> Task[[StageContext], State[Any]]:
    @task(
        name=stage, task_run_name=stage, retries=1 if stage == "train" else 0, retry_condition_fn=can_retry,
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
    command = [str(Path(sys.executable).with_name("dvc")), "repro", "--single-item", stage]
    ended = _run(stage, command, context, {PARENT_RUN_VARIABLE: context.parent_run_id})
    if not isinstance(ended, Ended):
        return ended
    if ended.code:
        if missing := next((match[1] for line in ended.err_lines if (match := _MISSING.search(line))), None):
            reason = f"{missing} is missing: params.yaml names it, or an earlier stage writes it"
            return Failed(name=USER_ERROR, message=f"{stage}: {reason}")
        codes = [int(match[1]) for line in ended.err_lines if (match := _STAGE_CODE.search(line))]
        return _describe_failure(stage, ended, codes[-1] if codes else ended.code)
    unchanged = any(_UNCHANGED.search(line) for line in (*ended.out_lines, *ended.err_lines))
    return Completed(name=CACHED, message=f"{stage}: unchanged") if unchanged else Completed(message=f"{stage}: done")


def report_end(state: State[Any]) -> int:
    """Return the exit code of a flow run that ended so: 0 done, 2 the user's to mend, 1 anything else; say why."""
    if state.is_completed():
        return 0
    sys.stderr.write(f"error: {state.message}\n")
    return _USER_ERROR_CODE if state.name == USER_ERROR else 1


def _run(name: str, command: list[str], context: StageContext, env: Mapping[str, str]) -> Ended | State[Any]:
    logger = get_run_logger()

    def pass_on(line: str) -> None:
        if not _ADVICE.match(line):
            logger.log(_LEVELS.get(line.partition(":")[0].lower(), logging.INFO), "%s", line)

    try:
        return run_supervised(
            command,
            on_line=pass_on,
            cwd=context.root,
            env=child_environment(**env),
            timeout_s=context.timeout_s,
        )
    except TimeLimitError as error:
        return Failed(name="TimedOut", message=f"{name}: {error} (flow.stage_timeout_s)")


def _describe_failure(name: str, ended: Ended, code: int) -> State[Any]:
    message = _find_message(ended)
    if code == _USER_ERROR_CODE:
        return Failed(name=USER_ERROR, message=f"{name}: {message}")
    if code < 0 or code > 128:
        signum = -code if code < 0 else code - 128
        return Failed(name="Killed", message=f"{name}: ended by signal {signum}")
    return Failed(message=f"{name}: exited with {code}: {message}")


def _find_message(ended: Ended) -> str:
    """Return what the command said last: its `error: ...` line, else its last line before DVC's summary."""
    for line in reversed(ended.err_lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    own = [line for line in ended.err_lines if "failed to reproduce" not in line]
    return own[-1].removeprefix("ERROR: ") if own else "no message"


def run_on_pool(stage: str, context: StageContext) -> State[Any]:
    """Run one stage on a worker of the `gpu` pool, follow its log, and end it when this task ends early."""
    logger = get_run_logger()
    parameters = {"stage": stage, "parent_run_id": context.parent_run_id, "timeout_s": context.timeout_s}
    try:
        flow_run = run_deployment(STAGE_DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=stage)
    except ObjectNotFound:
        reason = f"this Prefect server has no deployment {STAGE_DEPLOYMENT}; see infra/README.md"
        return Failed(name=USER_ERROR, message=f"{stage}: {reason}")
    assert isinstance(flow_run, FlowRun)  # no coroutine: there is no event loop here
    logger.info("waiting for a worker of pool gpu (flow run %s)", flow_run.name)
    with get_client(sync_client=True) as client:
        try:
            return _follow(client, flow_run, stage, context.timeout_s)
        except BaseException:  # cancelled or interrupted: the sub-run must not go on alone
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
            raise


def _follow(client: SyncPrefectClient, flow_run: FlowRun, stage: str, timeout_s: float) -> State[Any]:
    logger = get_run_logger()
    started = time.monotonic()
    num_lines, has_warned = 0, False
    log_of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id]))
    while True:
        state = client.read_flow_run(flow_run.id).state
        is_final = state is not None and state.is_final()
        if is_final:
            time.sleep(_POLL_S)  # its last lines are on their way
        while lines := client.read_logs(log_of_run, offset=num_lines, limit=200):
            num_lines += len(lines)
            for line in lines:
                logger.log(line.level, "%s", line.message)
        if is_final and state is not None:
            return _repeat_state(stage, state)
        waited_s = time.monotonic() - started
        if waited_s > timeout_s:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
            return Failed(name="TimedOut", message=f"{stage}: took longer than {timeout_s:g} s on pool gpu")
        if not has_warned and waited_s > _WARN_AFTER_S and state is not None and not state.is_running():
            has_warned = True
            logger.warning("still no worker of pool gpu has taken %s; is one running?", stage)
        time.sleep(_POLL_S)


def _repeat_state(stage: str, state: State[Any]) -> State[Any]:
    if state.is_completed():
        return Completed(name=state.name, message=state.message)
    return Failed(name=state.name, message=state.message or f"{stage}: {state.name} on pool gpu")
