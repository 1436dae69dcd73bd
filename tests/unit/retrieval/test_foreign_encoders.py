"""Scorers from outside transformers: type of the weights, code of a pinned commit only, open_clip's own format."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.config import ScorerParams
from pipeline.errors import ModelError
from pipeline.retrieval.encoder import Encoder, load_encoder

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CODE = """
from pathlib import Path
from transformers import CLIPConfig, CLIPModel


class OwnConfig(CLIPConfig):
    model_type = "own_clip"


class OwnModel(CLIPModel):
    config_class = OwnConfig

    def encode_image(self, pixels):
        return self.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, ids):
        return self.get_text_features(input_ids=ids).pooler_output
"""


def _load(folder: Path, **changes: object) -> Encoder:
    return load_encoder(ScorerParams.model_validate({"path": str(folder), "device": "cpu", **changes}))


def _draw(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, size=(32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def test_half_precision_gives_nearly_the_same_vectors_under_another_name(tiny_clip_dir: Path) -> None:
    whole, half = _load(tiny_clip_dir), _load(tiny_clip_dir, dtype="bfloat16")
    a, b = whole.encode_images(_draw(3)), half.encode_images(_draw(3))
    assert ((a * b).sum(1) > 0.99).all()
    assert not np.array_equal(a, b)
    assert whole.digest != half.digest
    assert _load(tiny_clip_dir, dtype="float32").digest == whole.digest


def test_model_without_a_fixed_input_size_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="NaFlex"):
        _load(tmp_path)


# -- code that lies in the folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"trust_remote_code": True},
        {"revision": _COMMIT},
        {"trust_remote_code": True, "revision": "main"},
        {"trust_remote_code": True, "revision": _COMMIT[:39]},
    ],
)
def test_code_is_trusted_only_with_a_whole_commit(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ScorerParams.model_validate(given)


@pytest.fixture
def own_dir(tiny_clip_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny CLIP as a folder that brings its own Python, fetched at one commit."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "own"))
    (folder / "own_code.py").write_text(_CODE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "own_clip", "architectures": ["OwnModel"], "auto_map": names})
    )
    for name in ("config.json", "own_code.py"):
        note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{_COMMIT}\netag\n0.0\n")
    return folder


def test_own_code_embeds_as_the_model_that_it_wraps(own_dir: Path, tiny_clip_dir: Path) -> None:
    own, plain = _load(own_dir, trust_remote_code=True, revision=_COMMIT), _load(tiny_clip_dir)
    assert own.model_type == "own_clip"
    np.testing.assert_allclose(own.encode_images(_draw(3)), plain.encode_images(_draw(3)), atol=1e-5)
    texts = ["a", "another one"]
    np.testing.assert_allclose(own.encode_texts(texts), plain.encode_texts(texts), atol=1e-5)


def test_own_code_of_another_commit_is_not_run(own_dir: Path) -> None:
    (own_dir / "own_code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match=r"own_code|config\.json"):
        _load(own_dir, trust_remote_code=True, revision=_COMMIT[::-1])


def test_own_code_without_a_note_of_its_commit_is_not_run(own_dir: Path) -> None:
    (own_dir / "more_code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match=r"more_code\.py: its commit is not known"):
        _load(own_dir, trust_remote_code=True, revision=_COMMIT)


def test_own_code_is_not_run_unless_asked(own_dir: Path) -> None:
    (own_dir / "own_code.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match="names no known model family"):
        _load(own_dir)


# -- open_clip ----------------------------------------------------------------------------------------------------

_OPEN_CLIP_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def test_open_clip_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(_OPEN_CLIP_CONFIG))
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"open_clip_model\.safetensors"):
        _load(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("open_clip") is not None, reason="open_clip is installed")
def test_open_clip_that_is_not_installed_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(_OPEN_CLIP_CONFIG))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="install the extra open-clip"):
        _load(tmp_path)


def test_open_clip_embeds_as_open_clip_itself(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="the extra open-clip is not installed")
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.CLIP(**_OPEN_CLIP_CONFIG["model_cfg"]).eval()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              tmp_path / "open_clip_model.safetensors")  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(_OPEN_CLIP_CONFIG))
    encoder = _load(tmp_path)
    pixels = torch.stack([torch.from_numpy(np.asarray(image)).permute(2, 0, 1) for image in _draw(3)]) / 255
    with torch.inference_mode():
        wanted = model.encode_image((pixels - 0.5) / 0.25, normalize=True).numpy()
        expected = model.encode_text(open_clip.SimpleTokenizer(context_length=20)(["a", "b c"]), normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images(_draw(3)), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(["a", "b c"]), expected, atol=1e-5)
