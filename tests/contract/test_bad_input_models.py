"""`python -m pipeline STAGE` with an index, a policy or a checkpoint that does not fit: one line, exit 2.

Nothing is written then. Only the tracking store is left out, for time; everything else is what the command does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from pipeline import __main__ as entry
from pipeline.models.model_folder import compute_model_digest, note_base
from pipeline.policy.policy import load_policy
from pipeline.runs.tracking import StageRun, null_run
from tests.small_run import write_small_run
from tests.tiny_families import build_tiny_policy
from tests.tiny_models import build_tiny_clip, build_tiny_llava

pytestmark = pytest.mark.slow  # runs stages before it spoils their models


@contextmanager
def untracked(*_: object) -> Iterator[StageRun]:
    yield null_run()


@dataclass
class Checkout:
    """A checkout in which stages can be run, and the models that its parameters may name."""

    root: Path
    models: Path
    capture: pytest.CaptureFixture[str] | None = None

    def run(self, stage: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.runs.tracking.stage_run", untracked)
            patch.chdir(self.root)
            return entry.main([stage])

    def refuse(self, stage: str) -> str:
        """Run a stage that must refuse and return its one line."""
        assert self.capture is not None
        before = self._describe()
        self.capture.readouterr()
        assert self.run(stage) == 2
        lines = [line for line in self.capture.readouterr().err.splitlines() if line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert self._describe() == before
        return lines[0]

    def set(self, section: str, **changes: object) -> None:
        path = self.root / "params.yaml"
        params: dict[str, Any] = yaml.safe_load(path.read_text())
        params[section].update(changes)
        path.write_text(yaml.safe_dump(params))

    def add_policies(self, base: str) -> None:
        """Put the base itself in the place of what warm-up and r-GRPO would have made of it."""
        for name in ("sft", "policy"):
            folder = self.root / "artifacts" / name
            shutil.copytree(self.models / base, folder)
            note_base(folder, compute_model_digest(self.models / base))

    def _describe(self) -> dict[str, bytes]:
        files = (path for path in (self.root / "artifacts").rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory, tiny_clip_dir: Path, tiny_llava_dir: Path) -> Checkout:
    """A checkout after prepare, index and retrieve."""
    disable_progress_bar()  # a process of ours starts without, see pipeline/process/environment.py
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_clip_dir, models / "clip")
    shutil.copytree(tiny_llava_dir, models / "llava")
    builders = {"other_clip": build_tiny_clip, "other_llava": build_tiny_llava}
    for name, build in builders.items():
        (models / name).mkdir()
        build(models / name, seed=1)
    (models / "qwen").mkdir()
    build_tiny_policy("qwen2_5_vl", models / "qwen")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16)).save_pretrained(models / "text")
    bert = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8, vocab_size=16)
    BertModel(bert).save_pretrained(models / "bert")
    unknown = shutil.copytree(models / "llava", models / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "frobnicate"}))
    checkout = Checkout(tmp_path_factory.mktemp("indexed"), models)
    write_small_run(
        checkout.root, models / "clip", models / "llava", evaluate={"transfer_scorer": str(models / "clip")}
    )
    assert [checkout.run(stage) for stage in ("prepare", "index", "retrieve")] == [0, 0, 0]
    return checkout


@pytest.fixture
def checkout(indexed: Checkout, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Checkout:
    root = shutil.copytree(indexed.root, tmp_path / "checkout")
    return Checkout(root, indexed.models, capfd)


# A stale index


@pytest.mark.parametrize("stage", ["retrieve", "warmup", "train", "evaluate"])
def test_index_of_another_scorer_is_refused(checkout: Checkout, stage: str) -> None:
    checkout.add_policies("llava")
    checkout.set("scorer", path=str(checkout.models / "other_clip"))
    assert "index was made by another encoder than scorer.path names; run index again" in checkout.refuse(stage)


def test_real_command_says_one_line_beside_its_log(checkout: Checkout) -> None:
    checkout.set("scorer", path=str(checkout.models / "other_clip"))
    code = Path(entry.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "retrieve"],
        cwd=checkout.root,
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    *log, last = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert last.startswith("error: ")
    assert "index was made by another encoder" in last
    assert [re.sub(r"^[\d:]+ ", "", line) for line in log] == ["retrieve: starts"]


def test_index_of_the_same_folder_with_other_weights_is_refused(checkout: Checkout, tmp_path: Path) -> None:
    scorer = shutil.copytree(checkout.models / "clip", tmp_path / "scorer")
    checkout.set("scorer", path=str(scorer))
    assert checkout.run("retrieve") == 0
    shutil.copy(checkout.models / "other_clip" / "model.safetensors", scorer)
    assert "was made by another encoder" in checkout.refuse("retrieve")


@pytest.mark.parametrize("stage", ["retrieve", "warmup", "train", "evaluate"])
def test_index_of_an_earlier_revision_of_the_documents_is_refused(checkout: Checkout, stage: str) -> None:
    checkout.add_policies("llava")
    path = checkout.root / "data" / "documents.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(first), "text": "Revised."}) + "\n" + "".join(rest))
    assert checkout.run("prepare") == 0
    assert "index was made of other documents than" in checkout.refuse(stage)


@pytest.mark.parametrize("stage", ["warmup", "train", "evaluate"])
def test_pools_of_another_scorer_are_refused(checkout: Checkout, stage: str) -> None:
    checkout.add_policies("llava")
    checkout.set("scorer", path=str(checkout.models / "other_clip"))
    assert checkout.run("index") == 0
    assert "pools was made with another encoder or other documents; run retrieve again" in checkout.refuse(stage)


def test_index_cut_short_is_refused(checkout: Checkout) -> None:
    path = checkout.root / "artifacts" / "index" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-64])
    assert "vectors.npy is no whole array; run index again" in checkout.refuse("retrieve")


# A checkpoint of another family


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("clip", "model family 'clip' is not supported; known: idefics3, llava,"),
        ("text", "model family 'gpt2' is not supported; known:"),
        ("unknown", "frobnicate"),
    ],
)
def test_policy_of_another_family_is_refused(checkout: Checkout, model: str, message: str) -> None:
    checkout.set("policy", path=str(checkout.models / model))
    line = checkout.refuse("warmup")
    assert message in line
    assert str(checkout.models / model) in line


@pytest.mark.parametrize(
    ("model", "message"), [("llava", "this is llava"), ("text", "this is gpt2"), ("bert", "is bert")]
)
def test_scorer_of_another_family_is_refused(checkout: Checkout, model: str, message: str) -> None:
    checkout.set("scorer", path=str(checkout.models / model))
    for stage in ("index", "retrieve"):
        line = checkout.refuse(stage)
        assert message in line
        assert "of the CLIP family" in line


@pytest.mark.parametrize("base", ["other_llava", "qwen"])
@pytest.mark.parametrize("stage", ["train", "answer"])
def test_policy_trained_from_another_base_is_refused(checkout: Checkout, base: str, stage: str) -> None:
    checkout.add_policies("llava")
    checkout.set("policy", path=str(checkout.models / base))
    assert "sft: was trained on another base model than policy.path" in checkout.refuse(stage)


def test_adapter_of_another_base_is_refused(checkout: Checkout) -> None:
    from pipeline.config import load_params

    checkout.set("policy", lora={"rank": 2})
    params = load_params(checkout.root / "params.yaml")
    policy = load_policy(params.policy.path, params.policy)
    policy.prepare_training()
    (checkout.root / "artifacts" / "sft").mkdir()
    policy.save(checkout.root / "artifacts" / "sft")
    checkout.set("policy", path=str(checkout.models / "other_llava"))
    assert "was trained on another base model" in checkout.refuse("train")


def test_checkpoints_of_another_base_are_not_gone_on_from(checkout: Checkout) -> None:
    from pipeline.config import load_params
    from pipeline.stages.train import _name_run
    from pipeline.workspace import Workspace

    checkout.add_policies("llava")
    workspace = Workspace.at(checkout.root)
    name = _name_run(load_params(checkout.root / "params.yaml"), workspace)
    shutil.copy(checkout.models / "other_llava" / "model.safetensors", workspace.sft_dir)
    assert _name_run(load_params(checkout.root / "params.yaml"), workspace) != name


# Folders that are no models


@pytest.mark.parametrize("section", ["scorer", "policy"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "no such model folder"),
        ("empty", "config.json is missing"),
        ("no_weights", "holds no *.safetensors weights"),
        ("pickle", "can run code when opened"),
        ("cut_weights", "cannot be loaded"),
        ("broken_config", "config.json"),
        ("list_config", "config.json"),
    ],
)
def test_folder_that_is_no_model_is_refused(
    checkout: Checkout, tmp_path: Path, section: str, fault: str, message: str
) -> None:
    folder = tmp_path / "broken"
    checkout.set(section, path=str(folder))
    if fault != "missing":
        shutil.copytree(checkout.models / ("clip" if section == "scorer" else "llava"), folder)
        spoil(folder, fault)
    line = checkout.refuse("index" if section == "scorer" else "warmup")
    assert message in line
    assert str(folder) in line


def spoil(folder: Path, fault: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "empty":
        config.unlink()
    elif fault == "no_weights":
        weights.unlink()
    elif fault == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif fault == "cut_weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "broken_config":
        config.write_text(config.read_text()[:-5])
    else:
        config.write_text("[]")
