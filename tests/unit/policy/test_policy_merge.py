"""`region-r1 policy merge`: the trained policy as a folder that stands alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config import LoraParams, PolicyParams
from pipeline.policy.policy import load_policy
from pipeline.workspace import Workspace

_IMAGE, _QUESTION = Image.linear_gradient("L").convert("RGB"), "What is it?"


@pytest.fixture
def checkout(tiny_llava_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose policy is an adapter that does something."""
    section = {"path": str(tiny_llava_dir), "device": "cpu", "max_new_tokens": 4, "lora": {"rank": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"policy": section}))
    policy = load_policy(tiny_llava_dir, PolicyParams.model_validate(section | {"lora": LoraParams(rank=2)}))
    policy.prepare_training()
    torch.manual_seed(0)
    for name, weights in policy.model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(std=0.1)
    policy.save(Workspace.at(tmp_path).policy_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _ask(folder: Path, base: Path, lora: LoraParams | None) -> float:
    policy = load_policy(folder, PolicyParams(path=str(base), device="cpu", max_new_tokens=4, lora=lora))
    return policy.decide([_IMAGE], [_QUESTION])[0].p_region


def test_merged_folder_answers_as_base_and_adapter(checkout: Path, tiny_llava_dir: Path) -> None:
    done = CliRunner().invoke(cli.app, ["policy", "merge", "merged"])
    assert done.exit_code == 0, done.output
    merged = _ask(checkout / "merged", checkout / "merged", None)
    trained = _ask(Workspace.at(checkout).policy_dir, tiny_llava_dir, LoraParams(rank=2))
    assert merged == pytest.approx(trained, abs=1e-5)
    assert merged != pytest.approx(_ask(tiny_llava_dir, tiny_llava_dir, None), abs=1e-5)
    assert not list((checkout / "merged").glob("adapter*"))
    assert CliRunner().invoke(cli.app, ["policy", "merge", "merged"]).exit_code == 2


def test_merge_before_training_is_one_clear_error(checkout: Path) -> None:
    shutil.rmtree(Workspace.at(checkout).policy_dir)
    done = CliRunner().invoke(cli.app, ["policy", "merge", "merged"])
    assert done.exit_code == 2
    assert not (checkout / "merged").exists()


def test_checkpoint_of_another_family_is_one_line_and_exit_code_2(checkout: Path, tiny_llava_dir: Path) -> None:
    folder = Path(shutil.copytree(tiny_llava_dir, checkout / "bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    shutil.rmtree(Workspace.at(checkout).policy_dir)
    shutil.copytree(folder, Workspace.at(checkout).policy_dir)
    done = CliRunner().invoke(cli.app, ["policy", "merge", "merged"])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "family 'bert' is not supported; known: idefics3, llava" in done.stderr
