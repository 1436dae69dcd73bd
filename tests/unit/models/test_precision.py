"""Type of the policy's weights, arithmetic of its training, attention: each is used, and refused where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import LoraParams, PolicyParams
from pipeline.errors import ModelError
from pipeline.models.precision import choose_attention, choose_dtype
from pipeline.policy.policy import Policy, load_policy

_CPU, _GPU = torch.device("cpu"), torch.device("cuda")


def _load(folder: Path, **changes: object) -> Policy:
    return load_policy(folder, PolicyParams.model_validate({"path": str(folder), "device": "cpu", **changes}))


@pytest.mark.parametrize(
    ("dtype", "lora", "device", "wanted"),
    [
        ("auto", None, _CPU, torch.float32),
        ("auto", LoraParams(), _CPU, torch.float32),
        ("auto", None, _GPU, torch.float32),
        ("auto", LoraParams(), _GPU, torch.bfloat16),
        ("float32", LoraParams(), _GPU, torch.float32),
        ("bfloat16", None, _CPU, torch.bfloat16),
    ],
)
def test_weights_that_are_trained_stay_float32_unless_asked(
    dtype: str, lora: LoraParams | None, device: torch.device, wanted: torch.dtype
) -> None:
    params = PolicyParams.model_validate({"dtype": dtype, "lora": lora})
    assert choose_dtype(params, device) == wanted


def test_bfloat16_base_with_a_float32_adapter_answers(tiny_llava_dir: Path) -> None:
    policy = _load(tiny_llava_dir, dtype="bfloat16", lora=LoraParams(rank=2), max_new_tokens=3)
    policy.prepare_training()
    types = {name: weights.dtype for name, weights in policy.model.named_parameters()}
    assert {types[name] for name in types if "lora_" in name} == {torch.float32}
    assert {types[name] for name in types if "lora_" not in name} == {torch.bfloat16}
    assert policy.trains_in_bfloat16
    assert 0.0 <= policy.decide([Image.new("RGB", (40, 30))], ["What?"])[0].p_region <= 1.0


def test_full_fine_tune_of_bfloat16_weights_is_refused(tiny_llava_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"policy\.dtype"):
        _load(tiny_llava_dir, dtype="bfloat16").prepare_training()


def test_training_on_a_cpu_computes_in_float32(tiny_llava_dir: Path) -> None:
    policy = _load(tiny_llava_dir)
    policy.prepare_training()
    assert not policy.trains_in_bfloat16


def test_attention_changes_the_way_not_the_answer(tiny_llava_dir: Path) -> None:
    found = {}
    for attention in ("eager", "sdpa"):
        policy = _load(tiny_llava_dir, attention=attention, max_new_tokens=3)
        assert policy.model.config._attn_implementation == attention
        found[attention] = policy.decide([Image.new("RGB", (40, 30))], ["What?"])[0]
    assert found["eager"].p_region == pytest.approx(found["sdpa"].p_region, abs=1e-5)


def test_flash_attention_without_a_gpu_is_one_clear_error(tiny_llava_dir: Path) -> None:
    with pytest.raises(ModelError, match="needs a CUDA device"):
        _load(tiny_llava_dir, attention="flash_attention_2")


def test_flash_attention_asks_for_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.precision.is_flash_attn_2_available", lambda: True)
    with pytest.raises(ModelError, match="bfloat16"):
        choose_attention(PolicyParams(attention="flash_attention_2"), _GPU)
    params = PolicyParams(attention="flash_attention_2", lora=LoraParams())
    assert choose_attention(params, _GPU) == "flash_attention_2"
