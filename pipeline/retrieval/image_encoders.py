"""Encoders of pictures alone, adapted to what `ImageEncoder` reads: timm's models, and backbones of transformers.

Folders hold config.json and safetensors, as the libraries write them; normalisation and input size are the folder's
own. A picture is squashed to the input, as for all encoders here, so a centre crop only gives the size.

Which features stand for a picture:

| family | features |
|---|---|
| timm | what the model gives without its classifier: `create_model(architecture, num_classes=0)` |
| dinov2, dinov2_with_registers, dinov3_vit | `pooler_output`: the class token after the last normalisation |
| vit | the same token; its pooler is a layer that classifiers do not train |
| convnext, convnextv2, dinov3_convnext | `pooler_output`: the mean over places, normalised |
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from pipeline.errors import ModelError, write_on_one_line
from pipeline.retrieval.timm_import import import_timm

Untyped = Any
"""A class of another library, whose attributes depend on the model."""

BACKBONES: Final = frozenset(
    {"convnext", "convnextv2", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "vit"}
)
_WITHOUT_POOLER: Final = frozenset({"vit"})
_TIMM_WEIGHTS: Final = "model.safetensors"
_RESCALE_FACTOR: Final = 1 / 255


class AdaptedBackbone:
    """A model of pictures under the names that transformers gives a dual encoder's picture half.

    Args:
        model: gives one vector per picture, or an output of transformers.
        model_type: name of its family.
        image_size: side of its square input, pixels.
    """

    def __init__(self, model: Untyped, *, model_type: str, image_size: int) -> None:
        # Convolutions of a CPU run 1.5 to 2 times as fast so (EfficientNet-Lite0, one thread).
        self._model = model.to(memory_format=torch.channels_last)
        self.config = SimpleNamespace(model_type=model_type, vision_config=SimpleNamespace(image_size=image_size))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(iter(self._model.parameters())).dtype  # type: ignore[no-any-return]

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, D) features of (N, 3, H, W) normalised pixels."""
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if self.config.model_type in _WITHOUT_POOLER:
            # A checkpoint of another size has its table of places resampled, as DINO's do by themselves.
            output = self._model(pixel_values=pixel_values, interpolate_pos_encoding=True)
            return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]
        output = self._model(pixel_values)
        return output if isinstance(output, torch.Tensor) else output.pooler_output


def is_timm(folder: Path) -> bool:
    """Return whether a folder's config.json is timm's: it names an architecture, and no family of transformers."""
    config = _read_object(folder / "config.json")
    return "architecture" in config and "model_type" not in config


def is_backbone(folder: Path) -> bool:
    """Return whether a folder's config.json names a backbone of transformers that is known here."""
    return _read_object(folder / "config.json").get("model_type") in BACKBONES


def load_timm(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[AdaptedBackbone, Untyped]:
    """Return model and processor of a folder that timm wrote; a classifier in it is left out.

    Raises:
        ModelError: timm is not installed or does not know the architecture, or the folder is broken.
    """
    try:
        timm = import_timm()
    except ImportError as error:
        raise ModelError(f"{folder}: is a model of timm; install timm (README.md says how): {error}") from error
    config = _read_object(folder / "config.json")
    try:
        figures = config["pretrained_cfg"]
        _, height, width = figures["input_size"]
        processor = _build_processor(figures["mean"], figures["std"], _RESCALE_FACTOR)
        model = _create_timm_model(timm, config["architecture"], config.get("model_args", {}))
        _take_weights(model, load_file(folder / _TIMM_WEIGHTS), figures.get("classifier"))
    except KeyError as error:
        raise ModelError(f"{folder}: its config.json does not say {error}") from error
    except (TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {write_on_one_line(error)}") from error
    adapted = AdaptedBackbone(
        _freeze(model.to(device, dtype)),
        model_type=str(config["architecture"]),
        image_size=_take_square(folder, height, width),
    )
    return adapted, processor


def load_backbone(folder: Path, device: torch.device, dtype: torch.dtype | str) -> tuple[AdaptedBackbone, Untyped]:
    """Return model and processor of a backbone of transformers; a classifier in its file is left out.

    Raises:
        ModelError: the folder is broken, or its weights lack some of the model's.
    """
    family = str(_read_object(folder / "config.json")["model_type"])
    without = {"add_pooling_layer": False} if family in _WITHOUT_POOLER else {}
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True, **without
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {write_on_one_line(error)}") from error
    if report["missing_keys"]:
        raise ModelError(f"{folder}: the weights lack {len(report['missing_keys'])} of the model's tensors")
    # Read as it is: the image processors' classes ask for torchvision, and nothing else of them is used.
    path = folder / "preprocessor_config.json"
    figures = _read_object(path)
    try:
        factor = float(figures.get("rescale_factor", _RESCALE_FACTOR)) if figures.get("do_rescale", True) else 1.0
        normalises = figures.get("do_normalize", True)
        mean, std = (figures["image_mean"], figures["image_std"]) if normalises else ([0.0] * 3, [1.0] * 3)
        processor = _build_processor(mean, std, factor)
        size = _take_square(folder, *_read_size(figures))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: is missing, or does not say mean, deviation and size: {write_on_one_line(error)}"
        ) from error
    return AdaptedBackbone(_freeze(model.to(device)), model_type=family, image_size=size), processor


def _create_timm_model(timm: Untyped, architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return an untrained model of a registered architecture: other names and settings could open other files.

    Raises:
        ValueError: there is no such architecture, or an argument is not the model's own.
    """
    if not timm.is_model(architecture):
        raise ValueError(f"timm knows no architecture {architecture}")
    foreign = sorted(arguments.keys() & inspect.signature(timm.create_model).parameters.keys())
    if foreign:
        raise ValueError(f"model_args of its config.json may not say {foreign[0]}")
    model: nn.Module = timm.create_model(architecture, **{**arguments, "num_classes": 0})
    return model


def _take_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], classifier: str | list[str] | None) -> None:
    """Load what a file holds; only a classifier may be left over.

    Raises:
        ValueError: the file lacks a tensor, or holds one that the model has not.
    """
    names = [classifier] if isinstance(classifier, str) else classifier or []
    heads = tuple(f"{name}." for name in names)
    found = model.load_state_dict({key: tensors[key] for key in tensors if not key.startswith(heads)}, strict=False)
    if found.missing_keys:
        raise ValueError(f"the weights lack {len(found.missing_keys)} of the model's tensors")
    if found.unexpected_keys:
        raise ValueError(f"the model has no {found.unexpected_keys[0]}")


def _read_size(figures: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the input, which releases of transformers have spelled in several ways."""
    size = figures["crop_size"] if figures.get("do_center_crop") else figures["size"]
    if isinstance(size, int):
        return size, size
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])


def _take_square(folder: Path, height: int, width: int) -> int:
    if height != width:
        raise ModelError(f"{folder}: its input is {width} x {height}; only square ones are supported")
    return height


def describe_normalisation(mean: Sequence[float], std: Sequence[float], factor: float = _RESCALE_FACTOR) -> Untyped:
    """Return what `ImageEncoder` reads of an image processor.

    Args:
        mean: of each channel, after the scaling.
        std: likewise.
        factor: that pixels of 0 to 255 are scaled by.
    """
    return SimpleNamespace(
        do_rescale=True,
        rescale_factor=factor,
        do_normalize=True,
        image_mean=[float(value) for value in mean],
        image_std=[float(value) for value in std],
    )


def _build_processor(mean: Sequence[float], std: Sequence[float], factor: float) -> Untyped:
    return SimpleNamespace(image_processor=describe_normalisation(mean, std, factor))


def _freeze(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(requires_grad=False)


def _read_object(path: Path) -> Mapping[str, Any]:
    """Return a JSON object; an empty one of a file that is missing or holds none, which the loaders then refuse."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
