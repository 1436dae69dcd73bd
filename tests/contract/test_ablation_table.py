"""The arms of the ablations, ablation/dvc.yaml and the tables are one list; the pipeline trains none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import child_environment
from pipeline.ablation.arms import ARMS, COLLAPSED, TABLES, apply_arm
from pipeline.ablation.basis import SECTIONS
from pipeline.config import load_params
from pipeline.stages import STAGES
from pipeline.workspace import Workspace

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def arm_stage() -> dict[str, Any]:
    stages = yaml.safe_load((CHECKOUT / "ablation" / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["arm"]
    stage: dict[str, Any] = stages["arm"]
    return stage


def test_the_matrix_names_the_arms(arm_stage: dict[str, Any]) -> None:
    assert arm_stage["matrix"] == {"name": list(ARMS)}
    assert arm_stage["cmd"] == "python3 -m pipeline.ablation ${item.name}"
    assert all(name == arm.name for name, arm in ARMS.items())


def test_an_arm_writes_what_the_workspace_names(arm_stage: dict[str, Any]) -> None:
    wanted = Workspace.at(CHECKOUT).ablation_dir / "full"
    (out,) = arm_stage["outs"]
    assert (CHECKOUT / "ablation" / arm_stage["wdir"] / out.replace("${item.name}", "full")).resolve() == wanted


def test_an_arm_depends_on_the_sections_that_its_basis_hashes(arm_stage: dict[str, Any]) -> None:
    assert arm_stage["params"] == list(SECTIONS)


def test_a_changed_table_trains_nothing_again(arm_stage: dict[str, Any]) -> None:
    only_shown = {
        f"pipeline/ablation/{name}.py" for name in ("arm_result", "comparisons", "summary", "page", "terminal")
    }
    assert not only_shown & set(arm_stage["deps"])


def test_dvc_lists_the_arms_apart_from_the_pipeline() -> None:
    assert _list_stages() == list(STAGES)
    assert set(_list_stages("ablation/dvc.yaml")) == {f"ablation/dvc.yaml:arm@{name}" for name in ARMS}


def _list_stages(*targets: str) -> list[str]:
    command = [str(Path(sys.executable).with_name("dvc")), "stage", "list", "--name-only", *targets]
    done = subprocess.run(command, cwd=CHECKOUT, env=child_environment(), capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_every_arm_stands_in_a_table_and_every_table_names_arms() -> None:
    shown = {row.arm for table in TABLES for row in table.rows}
    assert shown == set(ARMS)
    for table in TABLES:
        names = [row.arm for row in table.rows]
        assert table.reference in names
        assert all(row.above in names for row in table.rows if row.above)
    assert {name for name, arm in ARMS.items() if arm.start == "collapsed"} == set(COLLAPSED)


def test_every_arm_fits_the_shipped_parameters_and_differs_from_the_others() -> None:
    params = load_params(CHECKOUT / "params.yaml")
    made = {name: apply_arm(arm, params, 1) for name, arm in ARMS.items()}
    assert len({(arm.start, made[name].sha256()) for name, arm in ARMS.items()}) == len(ARMS)
    sizes = {own.train.queries_per_step * own.train.group_size for own in made.values()}
    assert sizes == {params.train.queries_per_step * params.train.group_size}
