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
from pipeline.files.images import ImageError, crop_view, inspect_image, load_upright
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


def build_tiff(samples: np.ndarray, *, order: str, bits: int, kind: int = 1, white: int = 1) -> bytes:
    """Return a grey TIFF; `kind` is its SampleFormat, `white` its PhotometricInterpretation (0: white is 0)."""
    height, width = samples.shape
    pixels = samples.tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, white), (273, 4, 8), (277, 3, 1),
        (278, 4, height), (279, 4, len(pixels)), (339, 3, kind),
    ]  # fmt: skip
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels)) + pixels
    content += struct.pack(f"{order}H", len(tags))
    for tag, number, value in tags:
        content += struct.pack(f"{order}HHI", tag, number, 1)
        content += struct.pack(f"{order}I" if number == 4 else f"{order}HH", *([value] if number == 4 else [value, 0]))
    return content + struct.pack(f"{order}I", 0)


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (4, 1))


@pytest.mark.parametrize(("order", "white"), [("<", 1), (">", 1), ("<", 0)])
def test_sixteen_bit_tiff_has_its_shades_in_either_byte_order(order, white, tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(build_tiff(RAMP.astype(f"{order}u2"), order=order, bits=16, white=white))
    shades = np.asarray(load(tmp_path / "a.tif", tmp_path))[..., 0]
    assert np.array_equal(shades, (RAMP >> 8) if white else 255 - (RAMP >> 8))


def test_twelve_bit_tiff_reaches_white(tmp_path: Path):
    packed = np.array([[0xFF, 0xF8, 0x00, 0x00, 0x0F, 0xFF]], np.uint8)  # 4095, 2048, 0, 4095 in 12 bits each
    content = build_tiff(packed, order="<", bits=12).replace(
        struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4)
    )
    (tmp_path / "a.tif").write_bytes(content)
    assert np.asarray(load(tmp_path / "a.tif", tmp_path))[0, :, 0].tolist() == [255, 128, 0, 255]


def test_float_tiff_between_black_and_white_has_its_shades(tmp_path: Path):
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(tmp_path / "a.tif")
    shades = np.asarray(load(tmp_path / "a.tif", tmp_path))[..., 0]
    assert np.abs(shades - RAMP / 257).max() <= 0.51


@pytest.mark.parametrize(
    ("samples", "kind", "message"),
    [
        (RAMP.astype("<u4"), 1, "do not say which value is white"),
        (RAMP.astype("<i4"), 2, "do not say which value is white"),
        ((RAMP // 2).astype("<i2"), 2, "do not say which value is white"),
        (RAMP.astype("<f4"), 3, "between 0 .black. and 1 .white."),
        (RAMP.astype("<f4") / 65535 - 0.1, 3, "between 0 .black. and 1 .white."),
        (np.full((2, 2), np.nan, "<f4"), 3, "between 0 .black. and 1 .white."),
    ],
)
def test_samples_of_unknown_range_are_refused_not_clipped(samples, kind, message, tmp_path: Path):
    content = build_tiff(samples, order="<", bits=8 * samples.dtype.itemsize, kind=kind)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        load(tmp_path / "a.tif", tmp_path)
    assert caught.value.fault == "image_unreadable"


def test_transparent_shade_of_sixteen_bits_becomes_white(tmp_path: Path):
    Image.fromarray(np.array([[5, 1300, 0x8000]], np.uint16)).save(tmp_path / "a.png", transparency=1300)
    image = load(tmp_path / "a.png", tmp_path)
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 255, 128]


def build_exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + content + struct.pack("<I", 0) + tail


TURNED = (ORIENTATION_TAG, 3, 1, struct.pack("<HH", 6, 0))
BEHIND_TWO = struct.pack("<I", 8 + 2 + 2 * 12 + 4)
ODD_EXIF = {
    "negative resolution": build_exif(TURNED, (0x011A, 10, 1, BEHIND_TWO), tail=struct.pack("<ii", -1, 0)),
    "resolution in words": build_exif(TURNED, (0x011A, 2, 4, b"72\0\0")),
    "resolution beyond the end": build_exif(TURNED, (0x011A, 5, 1, struct.pack("<I", 9_999_999))),
    "tag of unknown type": build_exif(TURNED, (0x011A, 99, 1, b"abcd")),
    "count that lies": build_exif(TURNED, (0x8769, 4, 7, struct.pack("<I", 3))),
    "orientation twice": build_exif(TURNED, TURNED),
    "orientation of two numbers": build_exif((ORIENTATION_TAG, 3, 2, struct.pack("<HH", 6, 6))),
}


@pytest.mark.parametrize("case", ODD_EXIF)
@pytest.mark.filterwarnings("ignore")  # what PIL finds odd; the product silences it
def test_odd_exif_keeps_its_orientation(case, tmp_path: Path):
    for name in ("a.jpg", "a.webp", "a.png"):
        noise(40, 30).save(tmp_path / name, exif=ODD_EXIF[case])
        assert load(tmp_path / name, tmp_path).size == (30, 40)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no TIFF at all",
        build_exif((ORIENTATION_TAG, 3, 1, struct.pack("<HH", 9, 0))),
        build_exif((ORIENTATION_TAG, 2, 2, b"6\0\0\0")),
    ],
)
@pytest.mark.filterwarnings("ignore")  # what PIL finds odd; the product silences it
def test_exif_without_a_sound_orientation_leaves_the_picture_as_stored(exif, tmp_path: Path):
    noise(40, 30).save(tmp_path / "a.jpg", exif=exif)
    assert load(tmp_path / "a.jpg", tmp_path).size == (40, 30)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_turned_palette_and_grey_pictures_turn_too(name, tmp_path: Path):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 8
    for image in (noise(40, 30).quantize(), Image.fromarray(RAMP)):
        straight = tmp_path / f"straight-{name}"
        image.save(straight)
        image.save(tmp_path / name, exif=exif)
        expected = load(straight, tmp_path).transpose(Image.Transpose.ROTATE_90)
        assert np.array_equal(np.asarray(load(tmp_path / name, tmp_path)), np.asarray(expected))


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
