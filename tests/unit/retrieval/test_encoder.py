from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from pipeline.config import ScorerParams
from pipeline.errors import ModelError
from pipeline.models.model_folder import compute_model_digest, resolve_model_path
from pipeline.retrieval.encoder import Encoder, PictureTask, encode_in_stream, fuse, load_encoder, normalise
from tests.tiny_models import CountingEncoder, build_tiny_clip


def _load(folder: Path, batch_size: int = 256) -> Encoder:
    return load_encoder(ScorerParams(path=str(folder), device="cpu"), batch_size)


def _make_pictures(count: int, side_px: int = 32) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, size=(side_px, side_px, 3), dtype=np.uint8)) for _ in range(count)]


def test_vectors_have_length_one_and_the_model_s_dimension(tiny_clip_dir: Path) -> None:
    encoder = _load(tiny_clip_dir)
    vectors = np.concatenate([encoder.encode_images(_make_pictures(3)), encoder.encode_texts(["a", "bb"])])
    assert vectors.shape == (5, encoder.dim) == (5, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_images_and_texts_equal_what_transformers_computes(tiny_clip_dir: Path) -> None:
    encoder = _load(tiny_clip_dir)
    model = AutoModel.from_pretrained(tiny_clip_dir).eval()
    processor = AutoProcessor.from_pretrained(tiny_clip_dir)
    pictures, texts = _make_pictures(4), ["a red thing", "another, longer thing"]
    with torch.inference_mode():
        wanted = model(**processor(text=texts, images=pictures, return_tensors="pt", padding=True))
    np.testing.assert_allclose(encoder.encode_images(pictures), wanted.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(texts), wanted.text_embeds.numpy(), atol=1e-5)


def test_batch_size_does_not_change_vectors(tiny_clip_dir: Path) -> None:
    pictures, texts = _make_pictures(7), ["a", "a much longer text", "bb"]
    one, many = _load(tiny_clip_dir, batch_size=1), _load(tiny_clip_dir)
    np.testing.assert_allclose(one.encode_images(pictures), many.encode_images(pictures), atol=1e-5)
    np.testing.assert_allclose(one.encode_texts(texts), many.encode_texts(texts), atol=1e-5)


def test_any_size_and_mode_is_squashed_to_the_input(tiny_clip_dir: Path) -> None:
    encoder = _load(tiny_clip_dir)
    picture = _make_pictures(1, side_px=50)[0].crop((0, 0, 50, 20))
    squashed = picture.resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(encoder.encode_images([picture]), encoder.encode_images([squashed]))
    assert encoder.encode_images([picture.convert("L")]).shape == (1, 16)


def test_a_text_beyond_the_model_s_length_is_cut(tiny_clip_dir: Path) -> None:
    assert np.isfinite(_load(tiny_clip_dir).encode_texts(["word " * 200])).all()


def test_nothing_gives_no_rows(tiny_clip_dir: Path) -> None:
    encoder = _load(tiny_clip_dir)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 16)


def test_digest_follows_content_not_place(tiny_clip_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_clip_dir, tmp_path / "copy"))
    assert compute_model_digest(copy) == _load(tiny_clip_dir).digest
    (copy / "README.md").write_text("words")
    assert compute_model_digest(copy) == compute_model_digest(tiny_clip_dir)
    other = build_tiny_clip(tmp_path / "other", seed=1)
    assert compute_model_digest(other) != compute_model_digest(tiny_clip_dir)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_pickled_weights_are_refused_by_name(tiny_clip_dir: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=name):
        _load(folder)


def test_damaged_and_missing_folders_are_refused_in_one_line(tiny_clip_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no .*safetensors"):
        _load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        _load(folder)
    with pytest.raises(ModelError, match="no such model folder"):
        _load(tmp_path / "nowhere")


def test_another_family_is_refused_before_its_weights_load(tiny_clip_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="CLIP family, this is bert"):
        _load(folder)


def test_weights_that_lack_a_tensor_are_refused(tiny_clip_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 "):
        _load(folder)


def test_a_tokenizer_without_end_token_is_refused(tiny_clip_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip_dir, tmp_path / "model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="ends no text"):
        _load(folder)


@pytest.mark.parametrize("spec", ["no-such-folder", "~", "demo/models/tiny-clip/config.json"])
def test_path_that_is_no_folder_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        resolve_model_path(spec)


def test_fused_vector_is_the_normalised_sum() -> None:
    image, text = np.array([[1, 0]], dtype=np.float32), np.array([[0, 1]], dtype=np.float32)
    np.testing.assert_allclose(fuse(image, text), [[2**-0.5, 2**-0.5]], rtol=1e-6)


def test_a_vector_without_direction_is_no_number() -> None:
    for row in ([0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]):
        with pytest.raises(ModelError, match="direction"):
            normalise(np.array([row], dtype=np.float32))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_stream_hands_rows_back_task_by_task(batch_size: int) -> None:
    encoder, pictures = CountingEncoder(), _make_pictures(11, side_px=8)
    parts = [pictures[:2], pictures[2:2], pictures[2:9], pictures[9:]]
    tasks = [PictureTask(len(part), lambda part=part: part) for part in parts]  # type: ignore[misc]
    rows = list(encode_in_stream(encoder, tasks, batch_size=batch_size))
    assert [len(part) for part in rows] == [2, 0, 7, 2]
    np.testing.assert_allclose(np.concatenate(rows), CountingEncoder().encode_images(pictures), atol=1e-6)
    assert max(encoder.batch_sizes) <= batch_size
    assert encoder.num_images == 11


def test_stream_passes_on_what_a_task_raises() -> None:
    def fail() -> list[Image.Image]:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(encode_in_stream(CountingEncoder(), [PictureTask(1, fail)], batch_size=4))
