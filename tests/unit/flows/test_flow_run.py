"""The flows themselves, without a server: what runs, what a failure stops, and how the MLflow run ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.states import Completed, Failed

from flows import ablation, region_r1
from flows.execution.steps import StageContext
from pipeline.config import Params
from pipeline.runs import tracking
from pipeline.runs.run_lock import find_holder, hold_run_lock
from pipeline.stages import STAGE_NAMES

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own

Outcomes = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout with parameters and one MLflow store for all tests."""
    folder = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("REGION_R1_ROOT", str(folder))
        yield folder


def write_params(root: Path, **changes: dict[str, Any]) -> None:
    """Write out every default, as DVC needs it."""
    content = Params().model_dump(mode="json", by_alias=True) | changes
    (root / "params.yaml").write_text(yaml.safe_dump(content))


class Flow:
    """A flow whose steps end as a test says; what it ran, and where it stood meanwhile."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.ends: Outcomes = {}
        self.ran: list[str] = []
        self.seen: list[str | None] = []
        self.published: list[dict[str, str]] = []

    def step(self, name: str) -> Callable[..., Any]:
        def run(*_: object, return_state: bool) -> Any:
            holder = find_holder(self.root)
            self.ran.append(name)
            self.seen.append(holder.stage if holder else None)
            end = self.ends.get(name, Completed())
            if isinstance(end, BaseException):
                raise end
            return end

        return run

    def read_mlflow_status(self) -> str:
        client = tracking.open_store(self.root)
        experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"], max_results=1)
        return str(found[0].info.status)


@pytest.fixture
def flow(root: Path, monkeypatch: pytest.MonkeyPatch) -> Flow:
    flow = Flow(root, "region-r1")
    write_params(root)
    for module in (region_r1, ablation):
        monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
        monkeypatch.setattr(module, "flow_run", type("R", (), {"get_name": staticmethod(lambda: "name")}))
    monkeypatch.setattr(region_r1, "data_task", flow.step("data"))
    monkeypatch.setattr(region_r1, "STAGE_TASKS", {name: flow.step(name) for name in STAGE_NAMES})
    monkeypatch.setattr(region_r1, "publish_summary", lambda *arguments: flow.published.append(arguments[2]))
    return flow


def test_stages_run_in_order_and_say_where_the_run_is(flow: Flow) -> None:
    flow.ends["index"] = Completed(name="Cached")
    state = region_r1.region_r1.fn()
    assert flow.ran == flow.seen == ["data", *STAGE_NAMES]
    assert state.message == "9 stages: 1 unchanged, 8 ran"
    assert flow.published[0]["index"] == "Cached"
    assert flow.read_mlflow_status() == "FINISHED"
    assert find_holder(flow.root) is None


def test_one_stage_alone_runs_behind_data(flow: Flow) -> None:
    assert region_r1.region_r1.fn(only="train").message == "1 stages: 0 unchanged, 1 ran"
    assert flow.ran == ["data", "train"]


@pytest.mark.parametrize("name", ["UserError", "Killed", "TimedOut", "Unavailable", "Busy", "Failed"])
def test_a_failing_stage_ends_flow_and_mlflow_run_as_failed(flow: Flow, name: str) -> None:
    flow.ends["retrieve"] = Failed(name=name, message=f"retrieve: {name}")
    state = region_r1.region_r1.fn()
    assert (state.type.value, state.name, state.message) == ("FAILED", name, f"retrieve: {name}")
    assert flow.ran[-1] == "retrieve"
    assert not flow.published
    assert flow.read_mlflow_status() == "FAILED"
    assert find_holder(flow.root) is None


def test_data_that_are_refused_stop_the_flow_before_any_stage(flow: Flow) -> None:
    flow.ends["data"] = Failed(name="UserError", message="data: data/ is not what data.dvc names")
    assert region_r1.region_r1.fn().name == "UserError"
    assert flow.ran == ["data"]


def test_an_interrupted_flow_ends_its_mlflow_run_as_killed(flow: Flow) -> None:
    flow.ends["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        region_r1.region_r1.fn()
    assert flow.read_mlflow_status() == "KILLED"


def test_what_is_wrong_before_the_first_stage_is_the_users_to_fix(flow: Flow) -> None:
    state = region_r1.region_r1.fn(only="trane")
    assert state.name == "UserError"
    assert (state.message or "").startswith("unknown stage 'trane'; there are prepare, ")
    (flow.root / "params.yaml").write_text("sead: 7\n")
    state = region_r1.region_r1.fn()
    assert state.name == "UserError"
    assert "sead" in (state.message or "")
    assert not flow.ran


def test_a_second_flow_on_the_same_checkout_is_refused(flow: Flow) -> None:
    with hold_run_lock(flow.root, wait_s=0, say=print) as lock:
        lock.enter("evaluate")
        state = region_r1.region_r1.fn()
    assert state.name == "Busy"
    assert "in stage evaluate" in (state.message or "")
    assert not flow.ran


def test_the_limits_of_a_run_come_from_the_parameters(root: Path) -> None:
    limits = {"stage_timeout_s": 3, "queue_timeout_s": 5, "busy_timeout_s": 7, "placement": "pools"}
    write_params(root, flow=limits)
    context = StageContext.of(root, region_r1.load_params_for_dvc(root / "params.yaml"), "id")
    assert (context.timeout_s, context.queue_timeout_s, context.busy_timeout_s) == (3, 5, 7)
    assert context.placement == "pools"


def test_the_stage_of_a_pool_runs_with_the_limits_that_it_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StageContext] = []
    monkeypatch.setattr(region_r1, "repro", lambda stage, context: seen.append(context) or Completed(message=stage))
    assert region_r1.region_r1_stage.fn("train", "id", 3.0, 7.0).message == "train"
    assert seen == [StageContext(root=root, parent_run_id="id", timeout_s=3.0, busy_timeout_s=7.0)]


@pytest.fixture
def arms(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> Flow:
    (flow.root / "artifacts" / "sft").mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(ablation, "arm_task", lambda name, *_, return_state: flow.step(name)(return_state=return_state))
    monkeypatch.setattr(ablation, "summarise", lambda *_: {})
    monkeypatch.setattr(ablation, "write_summary", lambda *_: "tables")
    monkeypatch.setattr(ablation, "create_markdown_artifact", lambda **_: None)
    return flow


def test_arms_run_in_turn_under_one_mlflow_run(arms: Flow) -> None:
    arms.ends["stock"] = Completed(name="Cached")
    assert ablation.region_r1_ablation.fn(["stock", "full"]).message == "2 arms: 1 unchanged, 1 ran"
    assert arms.seen == ["ablate stock", "ablate full"]
    assert arms.read_mlflow_status() == "FINISHED"


def test_a_failing_arm_ends_flow_and_mlflow_run_as_failed(arms: Flow) -> None:
    arms.ends["stock"] = Failed(name="Killed", message="stock: ended by signal 9")
    state = ablation.region_r1_ablation.fn(["stock", "full"])
    assert (state.name, state.message) == ("Killed", "stock: ended by signal 9")
    assert arms.ran == ["stock"]
    assert arms.read_mlflow_status() == "FAILED"


def test_arms_before_the_first_run_are_the_users_to_fix(arms: Flow) -> None:
    assert ablation.region_r1_ablation.fn(["stok"]).name == "UserError"
    (arms.root / "artifacts" / "sft").rmdir()
    state = ablation.region_r1_ablation.fn(["stock"])
    assert state.name == "UserError"
    assert "`region-r1 run` first" in (state.message or "")
    with hold_run_lock(arms.root, wait_s=0, say=print):
        (arms.root / "artifacts" / "sft").mkdir()
        assert ablation.region_r1_ablation.fn(["stock"]).name == "Busy"
    assert not arms.ran
