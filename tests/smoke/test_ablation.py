"""One arm on a tiny world with tiny random models: what it leaves, how it goes on, and the flow around it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import child_environment
from pipeline.ablation import collapse as collapse_module
from pipeline.ablation import run as run_module
from pipeline.ablation.__main__ import main, run_named_arm
from pipeline.ablation.arms import ARMS
from pipeline.ablation.basis import METRICS
from pipeline.ablation.run import run_arm
from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.files.store import load_curves, load_results, read_json
from pipeline.runs.tracking import null_run
from pipeline.stages import STAGES
from pipeline.workspace import Workspace
from tests.small_run import NUM_TEST, write_small_run

# MLflow, its database layer and Prefect warn about themselves.
pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore")]

CHECKOUT = Path(__file__).resolve().parents[2]


class Prepared:
    """A checkout whose first four stages have run."""

    def __init__(self, root: Path, scorer_dir: Path, policy_dir: Path) -> None:
        self.root = root
        self.workspace = Workspace.at(root)
        self.params_path = root / "params.yaml"
        self.params = write_small_run(
            root,
            scorer_dir,
            policy_dir,
            train={"warmup_steps": 10},
            ablation={"seeds": [5, 6], "max_steps": 2},
        )
        for stage in ("prepare", "index", "retrieve", "warmup"):
            STAGES[stage](self.params, self.workspace, null_run())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_clip_dir: Path, tiny_llava_dir: Path) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("checkout"), tiny_clip_dir, tiny_llava_dir)


@pytest.fixture(scope="module")
def whole(prepared: Prepared) -> Iterator[Path]:
    """The arm `full`, trained without a break under MLflow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("REGION_R1_PARENT_RUN_ID", raising=False)
        run_named_arm("full", prepared.params_path, prepared.root)
    kept = prepared.root / "whole"
    shutil.copytree(prepared.workspace.ablation_dir / "full", kept)
    yield kept


def test_an_arm_leaves_rows_curves_and_figures_and_no_checkpoints(prepared: Prepared, whole: Path) -> None:
    result = read_json(whole / "result.json")
    assert set(result["seeds"]) == {"5", "6"}
    assert result["params"]["train"]["max_steps"] == 2
    assert result["start"]["kind"] == "sft"
    for figures in result["seeds"].values():
        assert set(figures) == set(METRICS)
        assert all(0.0 <= value <= 1.0 for value in figures.values())
    rows = load_results(whole / "results.parquet")
    assert {row.method for row in rows} == {"full", "seed-5", "seed-6"}
    assert len(rows) == 3 * NUM_TEST
    for seed in (5, 6):
        assert {point.step for point in load_curves(whole / f"curve-{seed}.parquet")} == {1, 2}
    assert not list((prepared.workspace.checkpoints_dir / "ablation").iterdir())


def test_an_arm_is_an_mlflow_run_with_a_child_for_each_seed(prepared: Prepared, whole: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{prepared.root / 'mlruns' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("region-r1").experiment_id])
    (arm,) = [run for run in runs if run.info.run_name == "ablate-full"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == arm.info.run_id]
    assert {child.data.tags["seed"] for child in children} == {"5", "6"}
    result = read_json(whole / "result.json")
    for child in children:
        figures = result["seeds"][child.data.tags["seed"]]
        assert {name: child.data.metrics[f"test_{name}"] for name in METRICS} == figures
        assert child.info.status == "FINISHED"
        assert child.data.params["train.max_steps"] == "2"
        assert len(client.get_metric_history(child.info.run_id, "reward")) == 2
    means = {name: sum(seed[name] for seed in result["seeds"].values()) / 2 for name in METRICS}
    assert {name: arm.data.metrics[f"test_{name}"] for name in METRICS} == pytest.approx(means)


class _DyingRun:
    """Stands in for the run that training logs to; the power fails at a step of a seed."""

    def __init__(self, at_step: int) -> None:
        self._at_step = at_step

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step == self._at_step:
            raise KeyboardInterrupt


class _CountingRun:
    """Stands in for an arm's run: counts the seeds that are opened, and dies before one of them."""

    def __init__(self, die_before: int | None = None) -> None:
        self.num_children = 0
        self._die_before = die_before

    def open_child(self, name: str, params: Params) -> AbstractContextManager[Any]:
        self.num_children += 1
        if params.seed == self._die_before:
            raise KeyboardInterrupt
        return nullcontext(null_run())


def _assert_same(found: Path, wanted: Path) -> None:
    assert load_results(found / "results.parquet") == load_results(wanted / "results.parquet")
    assert read_json(found / "result.json") == read_json(wanted / "result.json")


def test_an_arm_killed_between_seeds_trains_only_the_rest(
    prepared: Prepared, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_arm(ARMS["full"], prepared.params, prepared.workspace, _CountingRun(die_before=6))  # type: ignore[arg-type]
    trained: list[int] = []
    original = run_module.train_rgrpo

    def train(*arguments: Any, seed: int, **keywords: Any) -> Any:
        trained.append(seed)
        return original(*arguments, seed=seed, **keywords)

    monkeypatch.setattr(run_module, "train_rgrpo", train)
    run = _CountingRun()
    run_arm(ARMS["full"], prepared.params, prepared.workspace, run)  # type: ignore[arg-type]
    assert trained == [6]
    assert run.num_children == 2  # the first one's record is repeated in the new run
    _assert_same(prepared.workspace.ablation_dir / "full", whole)


def test_an_arm_killed_inside_a_seed_goes_on_from_its_checkpoint(prepared: Prepared, whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "null_run", lambda: _DyingRun(at_step=2))
        with pytest.raises(KeyboardInterrupt):
            run_arm(ARMS["full"], prepared.params, prepared.workspace, null_run())
    kept = prepared.workspace.checkpoints_dir / "ablation"
    assert len(list(kept.glob("*/full/training-5/checkpoint-1"))) == 1
    run_arm(ARMS["full"], prepared.params, prepared.workspace, null_run())
    assert not list(kept.iterdir())
    found = prepared.workspace.ablation_dir / "full"
    _assert_same(found, whole)
    steps = [point.step for point in load_curves(found / "curve-5.parquet") if point.metric == "reward"]
    assert steps == [1, 2]


def test_collapsed_arms_share_a_start_that_says_full(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse_module, "MAX_P_REGION", 0.2)  # this policy hardly speaks
    sections = prepared.params.model_dump(by_alias=True) | {"ablation": {"seeds": [5], "max_steps": 2}}
    params = Params.model_validate(sections)
    starts = []
    for name in ("collapsed_stock", "collapsed_balanced"):
        run_arm(ARMS[name], params, prepared.workspace, null_run())
        starts.append(read_json(prepared.workspace.ablation_dir / name / "result.json")["start"])
    assert starts[0] == starts[1]
    assert starts[0]["kind"] == "collapsed"
    assert starts[0]["p_region"] < 0.2


def test_a_policy_that_does_not_collapse_is_an_error(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collapse_module, "MAX_P_REGION", 0.0)
    monkeypatch.setattr(collapse_module, "MAX_SHIFT", 1)
    with pytest.raises(StageError, match=r"still opens a region with p = .* after a shift of 1"):
        run_arm(ARMS["collapsed_stock"], prepared.params, prepared.workspace, null_run())


def test_the_command_maps_errors_to_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    assert main(["fulll"]) == 2
    assert main(["full"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: unknown arm 'fulll'; there are full, stock")
    assert errors[1] == f"error: {tmp_path / 'artifacts' / 'sft'} is missing; run warmup first"


@pytest.mark.timeout(300)
def test_the_flow_trains_an_arm_through_dvc_and_prints_json_alone(prepared: Prepared, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    shutil.copytree(prepared.root / "data", root / "data")
    shutil.copytree(prepared.root / "artifacts", root / "artifacts", ignore=shutil.ignore_patterns("ablation"))
    shutil.copy(prepared.params_path, root)
    described = yaml.safe_load((CHECKOUT / "ablation" / "dvc.yaml").read_text())
    stage = described["stages"]["arm"]
    stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("pipeline/")]
    stage["params"] = ["ablation"]
    (root / "ablation").mkdir()
    (root / "ablation" / "dvc.yaml").write_text(yaml.safe_dump(described))
    (root / "dvc.yaml").write_text("stages: {}\n")
    env = child_environment(PYTHONPATH=str(CHECKOUT), REGION_R1_ROOT=str(root))
    env.pop("MLFLOW_TRACKING_URI", None)
    dvc = str(Path(sys.executable).with_name("dvc"))
    subprocess.run([dvc, "init", "-q", "--no-scm"], cwd=root, env=env, check=True)
    command = [sys.executable, "-m", "pipeline.cli", "ablate", "--arms", "stock", "--json"]
    ended = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert [table["name"] for table in summary["tables"]] == ["groups"]
    assert set(summary["missing"]) == set(ARMS) - {"stock"}
    assert "arm 1 of 1: stock" in ended.stderr
    assert (root / "ablation" / "dvc.lock").is_file()
    assert {path.name for path in (root / "artifacts" / "ablation").iterdir()} == {
        "stock", "summary.json", "summary.md", "ablation.svg",
    }  # fmt: skip
    status = subprocess.run(
        [dvc, "status", "ablation/dvc.yaml:arm@stock"], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    assert "up to date" in status.stdout
