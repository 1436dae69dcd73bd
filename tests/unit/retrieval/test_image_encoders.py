"""Encoders of pictures alone: features as timm and transformers give them, nothing run, one line for what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
)

from pipeline.config import ScorerParams
from pipeline.errors import ModelError
from pipeline.planning.sizes import measure_scorer
from pipeline.retrieval import image_encoders
from pipeline.retrieval.encoder import F32, Encoder, load_encoder, normalise
from pipeline.retrieval.image_encoders import BACKBONES
from pipeline.retrieval.timm_import import import_timm

_MEAN, _STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
_SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 14,
}  # fmt: skip
_NARROW: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
_FAMILIES: dict[str, tuple[Callable[[], Any], int]] = {
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**_SMALL, image_size=56)), 28),
    "dinov2_with_registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_SMALL, image_size=56)), 28),
    "dinov3_vit": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**_SMALL, image_size=28, num_register_tokens=2)), 28),
    "dinov3_convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**_NARROW, image_size=64)), 64),
    "vit": (lambda: ViTForImageClassification(ViTConfig(**_SMALL, image_size=56, num_labels=5)), 28),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**_NARROW)), 64),
    "convnextv2": (lambda: ConvNextV2Model(ConvNextV2Config(**_NARROW)), 64),
}
timm_is_there = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def _load(folder: Path) -> Encoder:
    return load_encoder(ScorerParams(path=str(folder), device="cpu"))


def _draw(count: int, side_px: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, size=(side_px, side_px, 3), dtype=np.uint8)) for _ in range(count)]


def _to_pixels(images: list[Image.Image], mean: list[float], std: list[float]) -> torch.Tensor:
    pixels = (np.stack([np.asarray(image) for image in images]) / 255 - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def _write_backbone(folder: Path, family: str) -> tuple[Any, int]:
    build, side_px = _FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    model.save_pretrained(folder)
    size = {"height": side_px, "width": side_px}
    figures = {"image_mean": _MEAN, "image_std": _STD, "rescale_factor": 1 / 255, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(figures))
    return model, side_px


def _write_timm(folder: Path, architecture: str = "test_efficientnet") -> Any:
    timm = import_timm()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=7).eval()
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


def _change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _assert_same(found: F32, features: torch.Tensor) -> None:
    np.testing.assert_allclose(found, normalise(features.numpy()), atol=1e-5)


def test_every_backbone_is_tested() -> None:
    assert set(_FAMILIES) == BACKBONES


@pytest.mark.parametrize("family", sorted(_FAMILIES))
def test_a_backbone_embeds_as_transformers_itself(tmp_path: Path, family: str) -> None:
    model, side_px = _write_backbone(tmp_path, family)
    encoder, images = _load(tmp_path), _draw(3, side_px)
    with torch.inference_mode():
        pixels = _to_pixels(images, _MEAN, _STD)
        if family == "vit":  # a classifier reads the token that is meant
            output = model.vit(pixels, interpolate_pos_encoding=True)
            wanted = output.last_hidden_state[:, 0]
            logits = model(pixels, interpolate_pos_encoding=True).logits
            torch.testing.assert_close(model.classifier(wanted), logits)
        else:
            wanted = model(pixels).pooler_output
    _assert_same(encoder.encode_images(images), wanted)
    assert (encoder.model_type, encoder.input_size_px, encoder.dim) == (family, side_px, 16)


@timm_is_there
@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit", "test_convnext"])
def test_a_model_of_timm_embeds_as_timm_itself(tmp_path: Path, architecture: str) -> None:
    model = _write_timm(tmp_path, architecture)
    encoder, images = _load(tmp_path), _draw(2, 160)
    figures = model.pretrained_cfg
    with torch.inference_mode():
        features = model.forward_features(_to_pixels(images, list(figures["mean"]), list(figures["std"])))
        wanted = model.forward_head(features, pre_logits=True)
    _assert_same(encoder.encode_images(images), wanted)
    assert (encoder.model_type, encoder.input_size_px, encoder.dim) == (architecture, 160, wanted.shape[1])


@pytest.mark.parametrize(("side_px", "most"), [(64, 32), (224, 7), (1024, 1)])
def test_on_a_cpu_large_inputs_go_through_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side_px: int, most: int
) -> None:
    _write_backbone(tmp_path, "convnext")
    _change(tmp_path / "preprocessor_config.json", size=side_px)
    sizes: list[int] = []

    def embed(_: object, pixel_values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixel_values))
        return torch.ones(len(pixel_values), 16)

    monkeypatch.setattr(image_encoders.AdaptedBackbone, "get_image_features", embed)
    _load(tmp_path).encode_images([Image.new("RGB", (2, 2))] * 33)
    assert (max(sizes), sum(sizes)) == (most, 1 + 33)  # the first tells the dimension


def test_texts_take_no_part(tmp_path: Path) -> None:
    _write_backbone(tmp_path, "dinov2")
    encoder = _load(tmp_path)
    assert not encoder.has_text
    assert not encoder.encode_texts(["a red star", "b"]).any()
    assert encoder.encode_texts(["a red star", "b"]).shape == (2, 16)


@pytest.mark.parametrize(
    ("figures", "side_px"),
    [
        ({"size": 42}, 42),
        ({"size": {"shortest_edge": 42}}, 42),
        ({"size": {"shortest_edge": 56}, "do_center_crop": True, "crop_size": {"height": 42, "width": 42}}, 42),
    ],
)
def test_input_size_is_the_folder_s_own_however_it_is_spelled(
    tmp_path: Path, figures: dict[str, object], side_px: int
) -> None:
    _write_backbone(tmp_path, "dinov2")
    _change(tmp_path / "preprocessor_config.json", **figures)
    assert _load(tmp_path).input_size_px == side_px


@pytest.mark.parametrize("name", ["do_rescale", "do_normalize"])
def test_what_the_processor_leaves_out_is_left_out(tmp_path: Path, name: str) -> None:
    model, side_px = _write_backbone(tmp_path, "convnext")
    _change(tmp_path / "preprocessor_config.json", **{name: False})
    images = _draw(2, side_px)
    pixels = _to_pixels(images, [0.0] * 3, [1.0] * 3)
    if name == "do_rescale":
        pixels = (pixels * 255 - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    with torch.inference_mode():
        wanted = model(pixels).pooler_output
    np.testing.assert_allclose(_load(tmp_path).encode_images(images), normalise(wanted.numpy()), atol=1e-4)


@pytest.mark.parametrize(
    ("file", "changes", "complaint"),
    [
        ("preprocessor_config.json", {"size": {"height": 28, "width": 42}}, "its input is 42 x 28"),
        ("preprocessor_config.json", {"image_mean": None}, "does not say mean, deviation and size"),
        ("preprocessor_config.json", {"size": "large"}, "does not say mean, deviation and size"),
        ("config.json", {"hidden_size": 32}, "cannot be loaded"),
        ("config.json", {"num_hidden_layers": 3}, r"lack \d+ of the model's tensors"),
    ],
)
def test_a_broken_backbone_is_one_line(tmp_path: Path, file: str, changes: dict[str, object], complaint: str) -> None:
    _write_backbone(tmp_path, "dinov2")
    _change(tmp_path / file, **changes)
    with pytest.raises(ModelError, match=complaint) as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


@timm_is_there
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "no_such_model"}, "timm knows no architecture no_such_model"),
        ({"architecture": "hf-hub:timm/test_vit.r160_in1k"}, "timm knows no architecture"),
        ({"architecture": "local-dir:."}, "timm knows no architecture"),
        ({"architecture": "test_resnet"}, "cannot be loaded"),
        ({"model_args": {"checkpoint_path": "x.pth"}}, "may not say checkpoint_path"),
        ({"model_args": {"no_such_argument": 1}}, "cannot be loaded"),
        ({"pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.5] * 3}}, "does not say 'std'"),
        ({"pretrained_cfg": None}, "cannot be loaded"),
    ],
)
def test_a_broken_model_of_timm_is_one_line(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    _write_timm(tmp_path)
    _change(tmp_path / "config.json", **changes)
    with pytest.raises(ModelError, match=complaint) as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


@timm_is_there
def test_weights_that_are_short_left_over_or_damaged_are_refused(tmp_path: Path) -> None:
    _write_timm(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"more.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"the model has no more\.weight"):
        _load(tmp_path)
    save_file({name: tensors[name] for name in tensors if name != "conv_stem.weight"}, path)
    with pytest.raises(ModelError, match="the weights lack 1 "):
        _load(tmp_path)
    path.write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        _load(tmp_path)


def test_pickled_weights_of_timm_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: can run code"):
        _load(tmp_path)


def test_timm_that_is_not_installed_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("No module named 'timm'")

    monkeypatch.setattr(image_encoders, "import_timm", fail)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"install timm \(README\.md says how\)"):
        _load(tmp_path)


@timm_is_there
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_nobody_takes_the_placeholders_for_torchvision() -> None:
    import_timm()
    assert not any(name.split(".")[0] == "torchvision" for name in sys.modules)
    assert find_spec("torchvision") is None


@timm_is_there
def test_the_plan_counts_the_weights_of_such_folders(tmp_path: Path) -> None:
    model = _write_timm(tmp_path)
    size = measure_scorer(ScorerParams(path=str(tmp_path)))
    assert size.parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    backbone, _ = _write_backbone(tmp_path / "dino", "dinov2")
    assert measure_scorer(ScorerParams(path=str(tmp_path / "dino"))).parameters == backbone.num_parameters()
