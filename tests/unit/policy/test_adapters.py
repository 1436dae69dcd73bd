"""A policy with an adapter: small on disk, alike after loading, never on another base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import LoraParams, PolicyParams
from pipeline.errors import ModelError
from pipeline.policy.policy import Policy, load_policy
from tests.conftest import TaughtLlava
from tests.tiny_models import build_tiny_llava

_QUESTIONS = ["What is it?", "What is the red thing at the left?"]
_IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, size=(60, 80, 3), dtype=np.uint8))


def _params(base: Path) -> PolicyParams:
    return PolicyParams(path=str(base), max_new_tokens=9, device="cpu", lora=LoraParams(rank=2))


def _answer(policy: Policy) -> list[tuple[str, float]]:
    answers = policy.decide([_IMAGE] * len(_QUESTIONS), _QUESTIONS)
    return [(answer.completion, pytest.approx(answer.p_region, abs=1e-5)) for answer in answers]


@pytest.fixture
def adapted(spoken_llava: TaughtLlava) -> Iterator[Policy]:
    torch.manual_seed(0)
    policy = load_policy(spoken_llava.folder, _params(spoken_llava.folder))
    policy.prepare_training()
    for name, weights in policy.model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(std=0.1)
    yield policy


def test_only_the_adapter_is_trained(adapted: Policy) -> None:
    trained = [name for name, weights in adapted.model.named_parameters() if weights.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def test_saved_adapter_is_small_and_answers_alike(adapted: Policy, spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    adapted.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = load_policy(tmp_path, _params(spoken_llava.folder))
    assert _answer(again) == _answer(adapted)
    assert _answer(again) != _answer(load_policy(spoken_llava.folder, _params(spoken_llava.folder)))


def test_saved_adapter_has_the_same_bytes_each_time(adapted: Policy, spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    adapted.save(tmp_path / "first")
    again = load_policy(tmp_path / "first", _params(spoken_llava.folder))
    again.save(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    modules = json.loads((tmp_path / "first" / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)


def test_merged_policy_stands_alone(adapted: Policy, tmp_path: Path) -> None:
    wanted = _answer(adapted)
    adapted.save_merged(tmp_path)
    assert _answer(load_policy(tmp_path, PolicyParams(max_new_tokens=9, device="cpu"))) == wanted


def test_adapter_refuses_another_base(adapted: Policy, tmp_path: Path) -> None:
    adapted.save(tmp_path / "adapter")
    other = build_tiny_llava(tmp_path / "other")
    with pytest.raises(ModelError, match="another base model"):
        load_policy(tmp_path / "adapter", _params(other))


def test_a_cut_adapter_is_one_clear_error(adapted: Policy, spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    adapted.save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(tmp_path, _params(spoken_llava.folder))
    weights.unlink()
    with pytest.raises(ModelError, match="adapter_model"):
        load_policy(tmp_path, _params(spoken_llava.folder))
