"""The plan: sizes as the files say them, estimates that follow the parameters, times only where measured."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config import LoraParams, Params, PolicyParams, StatedSize, load_params
from pipeline.errors import ModelError
from pipeline.files.store import write_json
from pipeline.planning import plan as planning
from pipeline.planning import sizes
from pipeline.planning.plan import Device, build_plan
from pipeline.planning.terminal import print_plan
from pipeline.policy.policy import load_policy
from pipeline.runs.run_lock import hold_run_lock
from pipeline.stages import STAGE_NAMES
from pipeline.workspace import Workspace
from tests.tiny_families import build_tiny_policy

_ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    tensors = {
        "embed_tokens.weight": torch.zeros(100, 8),
        "layers.0.up.weight": torch.zeros(32, 8),
        "layers.0.norm.weight": torch.zeros(8),
        "lm_head.weight": torch.zeros(100, 8),
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llava", "text_config": {"num_hidden_layers": 2, "hidden_size": 8}, "image_seq_length": 16}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "find_device", lambda _: Device(name="x", total=8e9, free=4e9, is_gpu=False))
    monkeypatch.setattr(planning, "ask_dvc", lambda _: (frozenset({"train"}), ""))


def test_sizes_are_read_from_headers(folder: Path) -> None:
    size = sizes.measure_policy(PolicyParams(path=str(folder), lora=LoraParams(rank=4)))
    assert size.present
    assert size.parameters == 800 + 256 + 8 + 800
    assert size.adapter_parameters == 4 * (32 + 8)
    assert size.shape == (2, 8, 16)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_counts_are_those_of_the_loaded_model_and_its_adapter(family: str, tmp_path: Path) -> None:
    params = PolicyParams(path=str(build_tiny_policy(family, tmp_path)), device="cpu", lora=LoraParams(rank=3))
    size = sizes.measure_policy(params)
    policy = load_policy(tmp_path, params)
    assert size.parameters == sum(weights.numel() for weights in policy.model.parameters())
    policy.prepare_training()
    trained = sum(weights.numel() for weights in policy.model.parameters() if weights.requires_grad)
    assert size.adapter_parameters == trained


def test_missing_folder_takes_the_stated_size() -> None:
    stated = StatedSize(parameters=7, source="a card", num_layers=3, hidden_size=5)
    size = sizes.measure_policy(PolicyParams(path="nowhere", size=stated))
    assert (size.present, size.parameters, size.source) == (False, 7, "a card")
    assert sizes.measure_policy(PolicyParams(path="nowhere")).parameters is None


def test_broken_header_is_one_clear_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        sizes.read_shapes(folder)


def test_memory_by_hand(folder: Path) -> None:
    params = PolicyParams(path=str(folder), max_new_tokens=20)
    size = sizes.measure_policy(params)
    memory = sizes.estimate_training(size, params, num_rows=3, num_copies=2, on_gpu=False)
    assert memory.weights == 2 * 4 * 1864
    assert memory.gradients == 4 * 1864
    assert memory.optimiser == 8 * 1864
    assert memory.activations == 3 * (16 + 64 + 20) * 8 * 2 * 34 * 2
    assert memory.total() == memory.weights + memory.gradients + memory.optimiser + (memory.activations or 0)


def test_an_adapter_on_a_gpu_takes_half_the_weights_and_few_moments(folder: Path) -> None:
    params = PolicyParams(path=str(folder), lora=LoraParams(rank=4))
    size = sizes.measure_policy(params)
    memory = sizes.estimate_training(size, params, num_rows=1, num_copies=1, on_gpu=True)
    assert memory.weights == 2 * 1864 + 4 * 160
    assert memory.optimiser == 8 * 160


@pytest.mark.parametrize("path", sorted((_ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_can_be_planned(path: Path, tmp_path: Path, on_cpu: None) -> None:
    plan = build_plan(load_params(path), tmp_path)
    assert [stage.name for stage in plan.stages] == list(STAGE_NAMES)
    assert [stage.name for stage in plan.stages if stage.stale] == ["train"]
    content = plan.as_json()
    assert all(row["memory_gb"]["total"] is not None for row in content["stages"])
    assert {stage.measured for stage in plan.stages} == {"not measured yet"}
    json.dumps(content)


def _write_run(root: Path, params: Params, **changes: Any) -> None:
    ran = {"params": params.model_dump(mode="json", by_alias=True) | changes}
    workspace = Workspace.at(root)
    write_json(workspace.provenance_path("train"), ran | {"step_seconds": 3.0})
    write_json(workspace.provenance_path("answer"), ran | {"answers_per_s": 4.0, "figures": {"num_answers": 80}})
    write_json(workspace.provenance_path("index"), ran | {"images_per_s": 10.0, "figures": {"num_images": 50}})


def test_times_come_from_the_last_run_of_the_same_parameters(tmp_path: Path, on_cpu: None) -> None:
    params = Params()
    _write_run(tmp_path, params)
    seconds = {stage.name: stage.seconds for stage in build_plan(params, tmp_path).stages}
    assert seconds["train"] == 3.0 * params.train.max_steps
    assert seconds["index"] == 5.0
    assert seconds["answer"] == 20.0
    assert seconds["warmup"] is None


def test_another_models_time_is_not_taken(tmp_path: Path, on_cpu: None) -> None:
    _write_run(tmp_path, Params(), policy={"path": "another"}, scorer={"path": "another"})
    assert all(stage.seconds is None for stage in build_plan(Params(), tmp_path).stages)


def test_dvc_that_cannot_answer_is_said(tmp_path: Path) -> None:
    stale, answer = planning.ask_dvc(tmp_path)
    assert stale is None
    assert answer.startswith("DVC cannot say")


def test_a_run_that_is_going_on_is_named_with_its_stage(tmp_path: Path, on_cpu: None) -> None:
    assert build_plan(Params(), tmp_path).going_on is None
    with hold_run_lock(tmp_path, wait_s=0, say=print) as lock:
        lock.enter("train")
        plan = build_plan(Params(), tmp_path)
    assert plan.going_on is not None
    assert plan.as_json()["going_on"]["stage"] == "train"
    assert {stage.stale for stage in plan.stages} == {None}  # DVC is not asked: it is busy
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, console)
    output = console.file.getvalue()
    assert f"a run is going on: pid {os.getpid()} (" in output
    assert ", in stage train; what is stale is known when it has ended" in output


def test_plan_prints_json_and_text(tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = _ROOT / "demo" / "models"
    named = {"scorer": {"path": f"{models}/tiny-clip"}, "policy": {"path": f"{models}/tiny-llava"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**named, "evaluate": {"transfer_scorer": "nowhere"}}))
    done = CliRunner().invoke(cli.app, ["plan", "--json"])
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert [model["role"] for model in content["models"]] == ["policy", "scorer", "second scorer"]
    assert all(model["present"] and model["parameters"] > 100_000 for model in content["models"][:2])
    assert content["models"][2] | {"present": False, "parameters": None} == content["models"][2]
    monkeypatch.setenv("COLUMNS", "200")
    text = CliRunner().invoke(cli.app, ["plan"])
    assert text.exit_code == 0
    assert "tiny-llava" in text.stdout
