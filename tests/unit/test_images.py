"""Pictures come upright and RGB, or not at all."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import DataError
from pipeline.images import ImageError, crop_view, inspect_image, load_upright
from pipeline.types import Box

MAX_PIXELS = 1_000_000
ORIENTATION_TAG = 0x112


def load(path: Path, root: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    return load_upright(path, max_pixels=max_pixels, root=root)


def fault_of(path: Path, root: Path, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        load(path, root, max_pixels)
    assert path.name in str(caught.value)
    assert isinstance(caught.value, DataError)
    return caught.value.fault


def noise(width_px: int = 40, height_px: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height_px, width_px, 3), np.uint8))


def png_that_claims(width_px: int, height_px: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    # Where the red top left corner of the stored picture ends up (x, y as fractions).
    [(1, (40, 20), (0, 0)), (3, (40, 20), (1, 1)), (6, (20, 40), (1, 0)), (8, (20, 40), (0, 1))],
)
def test_exif_orientation_is_applied(orientation, size, corner, tmp_path: Path):
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    upright = load(tmp_path / "a.png", tmp_path)
    assert upright.size == size
    x, y = corner[0] * (size[0] - 1), corner[1] * (size[1] - 1)
    assert upright.getpixel((x, y)) == (255, 0, 0)
    facts = inspect_image(tmp_path / "a.png", max_pixels=MAX_PIXELS, root=tmp_path)
    assert (facts.width_px, facts.height_px) == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode, tmp_path: Path):
    image = Image.fromarray(np.zeros((6, 8), np.uint16)) if mode == "I;16" else Image.new(mode, (8, 6))
    image.save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", tmp_path).mode == "RGB"


def test_transparent_parts_become_white(tmp_path: Path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", tmp_path).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path):
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")
    image = load(tmp_path / "a.png", tmp_path)
    assert [image.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 128, 255], abs=1)


@pytest.mark.parametrize("kept", [0, 1, 10, 50, 90])
def test_truncated_image_is_refused(kept, tmp_path: Path):
    for name in ("a.png", "a.jpg", "a.webp"):
        noise().save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * kept // 100])
        assert fault_of(tmp_path / name, tmp_path) == "image_unreadable"


def test_text_named_jpg_is_refused(tmp_path: Path):
    (tmp_path / "a.jpg").write_text("no picture")
    assert fault_of(tmp_path / "a.jpg", tmp_path) == "image_unreadable"


def test_missing_file_and_folder_are_refused(tmp_path: Path):
    assert fault_of(tmp_path / "a.jpg", tmp_path) == "image_missing"
    (tmp_path / "b.jpg").mkdir()
    assert fault_of(tmp_path / "b.jpg", tmp_path) == "image_missing"


def test_pixel_limit_is_exact(tmp_path: Path):
    noise(40, 20).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png", tmp_path, max_pixels=800).size == (40, 20)
    assert fault_of(tmp_path / "a.png", tmp_path, max_pixels=799) == "image_too_large"


@pytest.mark.parametrize("side_px", [1001, 10_000, 50_000])
def test_decompression_bomb_is_refused_before_decoding(side_px, tmp_path: Path):
    # The picture data is empty: decoding would say "truncated", so this fault comes from the header alone.
    (tmp_path / "a.png").write_bytes(png_that_claims(side_px, side_px))
    assert fault_of(tmp_path / "a.png", tmp_path) == "image_too_large"


def test_path_outside_the_root_is_refused(tmp_path: Path):
    root = tmp_path / "data"
    root.mkdir()
    noise().save(tmp_path / "secret.png")
    assert fault_of(root / ".." / "secret.png", root) == "unsafe_path"
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    assert fault_of(root / "link.png", root) == "unsafe_path"
    (root / "loop.png").symlink_to("loop.png")
    assert fault_of(root / "loop.png", root) == "unsafe_path"
    assert fault_of(root / ("x" * 300), root) == "unsafe_path"


def test_link_inside_the_root_is_followed(tmp_path: Path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    root_link = tmp_path.parent / f"{tmp_path.name}-link"
    root_link.symlink_to(tmp_path)
    assert load(root_link / "link.png", root_link).size == (40, 20)


def test_hash_is_of_the_content(tmp_path: Path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    Image.new("RGB", (40, 20)).save(tmp_path / "c.png")
    digests = [
        inspect_image(tmp_path / name, max_pixels=MAX_PIXELS, root=tmp_path).sha256
        for name in ("a.png", "b.png", "c.png")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_crop_takes_the_named_region():
    image = noise(40, 20)
    view = crop_view(image, Box(0.25, 0.5, 0.5, 1.0))
    assert np.array_equal(np.asarray(view), np.asarray(image)[10:20, 10:20])
    assert crop_view(image, None) is image
    assert crop_view(image, Box(0.25, 0.5, 0.5, 1.0), (28, 14)).size == (28, 14)
    assert crop_view(image, None, (28, 28)).size == (28, 28)


coordinates = st.floats(0, 1, exclude_max=True)


@given(x=coordinates, y=coordinates, width=st.floats(1e-9, 1), height=st.floats(1e-9, 1), w=st.integers(1, 9))
def test_crop_is_never_empty_and_never_leaves_the_image(x, y, width, height, w):
    x1, y1 = min(x + width, 1.0), min(y + height, 1.0)
    if x1 <= x or y1 <= y:
        return
    image = Image.new("RGB", (w, 5), "white")
    view = crop_view(image, Box(x, y, x1, y1))
    assert 1 <= view.width <= w
    assert 1 <= view.height <= 5
    assert view.getextrema() == ((255, 255),) * 3  # outside the image PIL would fill with black
