"""STAGES, dvc.yaml and the Prefect tasks are one table; so are its parameters and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.execution.pools import STAGE_DEPLOYMENT
from flows.tasks import GPU_STAGES, STAGE_TASKS
from pipeline.config import Params
from pipeline.stages import STAGES
from pipeline.workspace import Workspace

CHECKOUT = Path(__file__).resolve().parents[2]
WORKSPACE = Workspace.at(CHECKOUT)
OUTS = {
    "prepare": [WORKSPACE.tables_dir],
    "index": [WORKSPACE.index_dir],
    "retrieve": [WORKSPACE.pools_dir],
    "warmup": [WORKSPACE.curve_path("warmup"), WORKSPACE.labels_dir, WORKSPACE.sft_dir],
    "train": [WORKSPACE.curve_path("train"), WORKSPACE.policy_dir, WORKSPACE.rollouts_dir],
    "answer": [WORKSPACE.answers_dir],
    "evaluate": [WORKSPACE.evaluation_dir],
    "report": [WORKSPACE.report_dir],
    "register": [WORKSPACE.registration_path],
}


@pytest.fixture(scope="module")
def dvc_stages() -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"]
    return stages


def test_stages_dvc_and_prefect_agree_in_name_and_order(dvc_stages: dict[str, dict[str, Any]]) -> None:
    assert list(STAGES) == list(dvc_stages) == list(STAGE_TASKS)
    assert [task.name for task in STAGE_TASKS.values()] == list(STAGES)
    assert set(STAGES) >= GPU_STAGES


def test_every_dvc_stage_runs_its_stage_and_writes_what_the_workspace_names(
    dvc_stages: dict[str, dict[str, Any]],
) -> None:
    for name, stage in dvc_stages.items():
        assert stage["cmd"] == f"python3 -m pipeline {name}"
        assert [CHECKOUT / out for out in stage["outs"]] == OUTS[name]
        assert [CHECKOUT / next(iter(metric)) for metric in stage["metrics"]] == [WORKSPACE.metrics_path(name)]


def test_stages_depend_on_sections_that_exist_and_on_earlier_outs(
    dvc_stages: dict[str, dict[str, Any]],
) -> None:
    sections = set(Params().model_dump(by_alias=True))
    written: set[str] = set()
    for stage in dvc_stages.values():
        assert set(stage["params"]) <= sections
        assert {dep for dep in stage["deps"] if dep.startswith("artifacts/")} <= written
        written |= set(stage["outs"])


def test_deployments_name_flows_that_exist_and_the_schedule_sleeps() -> None:
    from prefect.flows import Flow, load_flow_from_entrypoint

    described = yaml.safe_load((CHECKOUT / "infra" / "prefect.yaml").read_text())
    flows: dict[str, Flow[Any, Any]] = {
        entry["name"]: load_flow_from_entrypoint(entry["entrypoint"]) for entry in described["deployments"]
    }
    assert f"{flows['gpu'].name}/gpu" == STAGE_DEPLOYMENT
    assert {entry["name"]: entry["work_pool"]["name"] for entry in described["deployments"]} == {
        "nightly": "cpu",
        "ablation": "cpu",
        "gpu": "gpu",
    }
    (schedule,) = next(entry["schedules"] for entry in described["deployments"] if entry["name"] == "nightly")
    assert schedule["active"] is False
