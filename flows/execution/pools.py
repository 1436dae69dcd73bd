"""One stage on a worker of the `gpu` pool: handed over, followed, and ended when its flow ends early."""

from __future__ import annotations

import time
from typing import Any, Final

from prefect import get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Failed

from flows.execution.steps import TIMED_OUT, USER_ERROR, StageContext

STAGE_DEPLOYMENT: Final = "region-r1-stage/gpu"
_POLL_S = 2.0
_WARN_AFTER_S = 60.0
# The worker ends the stage itself at its limit, and says more; this is for one that has vanished.
_WORKER_MARGIN_S = 60.0


class Patience:
    """Time in the queue and time running, each with a limit of its own.

    Args:
        context: the limits.
        now: when the stage was handed over, in seconds of a clock that never goes back.
    """

    def __init__(self, context: StageContext, now: float) -> None:
        self._queue_s = context.queue_timeout_s
        # A worker on the same checkout may have to wait for another run too.
        self._run_s = context.timeout_s + context.busy_timeout_s + _WORKER_MARGIN_S
        self._handed_over = now
        self._began: float | None = None

    def complain(self, is_running: bool, now: float) -> str | None:
        """Return what lasted too long, or None."""
        if is_running and self._began is None:
            self._began = now
        if self._began is None:
            if now - self._handed_over > self._queue_s:
                return f"no worker of pool gpu took it within {self._queue_s:g} s (flow.queue_timeout_s)"
        elif now - self._began > self._run_s:
            return f"still runs on pool gpu after {self._run_s:g} s (flow.stage_timeout_s)"
        return None


def run_on_pool(stage: str, context: StageContext) -> State[Any]:
    """Run one stage on a worker of the `gpu` pool, follow its log, and end it when this task ends early."""
    logger = get_run_logger()
    parameters = {
        "stage": stage,
        "parent_run_id": context.parent_run_id,
        "timeout_s": context.timeout_s,
        "busy_timeout_s": context.busy_timeout_s,
    }
    try:
        flow_run = run_deployment(STAGE_DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=stage)
    except ObjectNotFound:
        reason = f"this Prefect server has no deployment {STAGE_DEPLOYMENT}; see infra/README.md"
        return Failed(name=USER_ERROR, message=f"{stage}: {reason}")
    assert isinstance(flow_run, FlowRun)  # no coroutine: there is no event loop here
    logger.info("waiting for a worker of pool gpu (flow run %s)", flow_run.name)
    with get_client(sync_client=True) as client:
        try:
            return _follow(client, flow_run, stage, context)
        except BaseException:  # cancelled or interrupted: the sub-run must not go on alone
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
            raise


def _follow(client: SyncPrefectClient, flow_run: FlowRun, stage: str, context: StageContext) -> State[Any]:
    logger = get_run_logger()
    started = time.monotonic()
    patience = Patience(context, started)
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
        is_running = state is not None and state.is_running()
        if complaint := patience.complain(is_running, time.monotonic()):
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
            return Failed(name=TIMED_OUT, message=f"{stage}: {complaint}")
        if not has_warned and not is_running and time.monotonic() - started > _WARN_AFTER_S:
            has_warned = True
            logger.warning("still no worker of pool gpu has taken %s; is one running?", stage)
        time.sleep(_POLL_S)


def _repeat_state(stage: str, state: State[Any]) -> State[Any]:
    if state.is_completed():
        return Completed(name=state.name, message=state.message)
    return Failed(name=state.name, message=state.message or f"{stage}: {state.name} on pool gpu")
