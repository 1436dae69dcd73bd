"""Pictures from disk, untrusted: confined to their folder, measured before decoding, upright, RGB."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import DataError
from pipeline.types import Box

if TYPE_CHECKING:
    from pipeline.core.inputs.lookalikes import Fingerprint

ImageFault = Literal["unsafe_path", "image_missing", "image_unreadable", "image_too_large"]

# Only formats that PIL decodes itself: EPS, say, would be handed to Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# What PIL's decoders raise on damaged files; UnidentifiedImageError is an OSError.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

# How a picture that was stored turned becomes upright, by its EXIF orientation (1 is upright).
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE_IS_ZERO: Final = 0

# `max_pixels` decides, and it is asked before decoding: PIL's own earlier warning would only be noise.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What it finds odd in EXIF or TIFF tags is of no use to anyone here: only the orientation is read.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


class ImageError(DataError):
    """A picture cannot be used; `fault` is the reason's short name, as in rejects.parquet."""

    def __init__(self, fault: ImageFault, reason: str, *, path: Path) -> None:
        super().__init__(reason, path=path)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What prepare learns from decoding a picture once.

    Attributes:
        width_px: upright.
        height_px: upright.
        sha256: hash of the file's content.
        fingerprint: what it looks like; None where nobody asked.
    """

    width_px: int
    height_px: int
    sha256: str
    fingerprint: Fingerprint | None = None


def load_upright(path: Path, *, max_pixels: int, root: Path) -> Image.Image:
    """Decode a picture: RGB, EXIF orientation applied, transparent parts on white.

    Args:
        path: the file, such as `data_dir / query.image_path`.
        max_pixels: a picture with more is refused before it is decoded.
        root: folder that the file must lie in once symbolic links are followed; a link into the DVC cache of the
            checkout whose data folder this is will do too.

    Raises:
        ImageError: a DataError naming the file: outside `root`, missing, too large, damaged or no image.
    """
    return _decode(_confine(path, root), path, max_pixels)


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Where pictures lie and how large one may be."""

    root: Path
    max_pixels: int

    def load(self, image_path: str) -> Image.Image:
        """Decode one picture, upright.

        Raises:
            DataError: it is missing, damaged, too large or outside the folder.
        """
        return load_upright(self.root / image_path, max_pixels=self.max_pixels, root=self.root)

    def load_squashed(self, image_paths: Sequence[str], side_px: int) -> list[Image.Image]:
        """Decode pictures whole, at an encoder's input size."""
        return [crop_view(self.load(image_path), None, (side_px, side_px)) for image_path in image_paths]


def inspect_image(
    path: Path, *, max_pixels: int, root: Path, look: Callable[[Image.Image], Fingerprint] | None = None
) -> ImageFacts:
    """Decode a picture as `load_upright` does, keeping only the facts.

    Args:
        path: as for `load_upright`.
        max_pixels: as for `load_upright`.
        root: as for `load_upright`.
        look: takes the fingerprint of the picture while it is at hand.

    Raises:
        ImageError: as `load_upright`.
    """
    real_path = _confine(path, root)
    image = _decode(real_path, path, max_pixels)
    with real_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fingerprint = None if look is None else look(image)
    return ImageFacts(width_px=image.width, height_px=image.height, sha256=digest, fingerprint=fingerprint)


def crop_view(image: Image.Image, box: Box | None, size_px: tuple[int, int] | None = None) -> Image.Image:
    """Cut a region out of an upright image.

    The region's edges are rounded to whole pixels and kept at least one pixel apart and inside the image.

    Args:
        image: upright image.
        box: fractions of the image; None takes all of it.
        size_px: (width, height) to resize the region to; None leaves it as cut.
    """
    view = image
    if box is not None:
        left, right = _whole_pixels(box.x0, box.x1, image.width)
        top, bottom = _whole_pixels(box.y0, box.y1, image.height)
        view = image.crop((left, top, right, bottom))
    if size_px is not None and view.size != size_px:
        view = view.resize(size_px, Image.Resampling.BICUBIC)
    return view


def _whole_pixels(low: float, high: float, length_px: int) -> tuple[int, int]:
    first = min(round(low * length_px), length_px - 1)
    return first, max(min(round(high * length_px), length_px), first + 1)


def _confine(path: Path, root: Path) -> Path:
    try:
        real_root, real_path = root.resolve(), path.resolve()
        inside = real_path.is_relative_to(real_root) or _lies_in_dvc_cache(real_path, real_root)
        is_file = inside and real_path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # name too long, null byte, loop of links
        raise ImageError("unsafe_path", f"is no usable path: {error}", path=path) from error
    if not inside:
        raise ImageError("unsafe_path", f"lies outside {root}", path=path)
    if not is_file:
        raise ImageError("image_missing", "is no file", path=path)
    return real_path


def _lies_in_dvc_cache(real_path: Path, real_root: Path) -> bool:
    """Whether a link was followed to where DVC keeps the data themselves, as its cache type `symlink` makes them."""
    cache_dir = _find_dvc_cache(real_root)
    return cache_dir is not None and real_path.is_relative_to(cache_dir)


@lru_cache
def _find_dvc_cache(data_dir: Path) -> Path | None:
    """Return the folder that DVC keeps the content of a data folder in; None where DVC does not look after it.

    Args:
        data_dir: `data/` of a checkout, absolute.
    """
    dvc_dir = data_dir.parent / ".dvc"
    if not dvc_dir.is_dir():
        return None
    from dvc.config import Config, ConfigError

    try:
        named = Config(str(dvc_dir))["cache"].get("dir")
    except ConfigError:
        return None
    return (Path(named) if named else dvc_dir / "cache").resolve()


def _decode(real_path: Path, path: Path, max_pixels: int) -> Image.Image:
    try:
        # Not by name: PIL would map an unpacked TIFF into memory and get the rows of a turned one wrong.
        with real_path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            num_pixels = image.width * image.height
            if num_pixels > max_pixels:
                raise ImageError(
                    "image_too_large",
                    f"has {image.width} x {image.height} pixels, more than max_image_pixels = {max_pixels}",
                    path=path,
                )
            image.load()
            turn = _TURNS.get(_read_orientation(image))
            upright = _to_rgb(image)
            return upright if turn is None else upright.transpose(turn)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("image_too_large", f"is larger than any sound image: {error}", path=path) from error
    except UnidentifiedImageError as error:
        raise ImageError("image_unreadable", f"is no picture of {', '.join(_FORMATS)}", path=path) from error
    except _DECODE_ERRORS as error:
        detail = " ".join(str(error).replace(str(real_path), real_path.name).split())
        raise ImageError("image_unreadable", f"cannot be decoded: {detail}", path=path) from error


def _read_orientation(image: Image.Image) -> Any:  # noqa: ANN401 - EXIF holds anything
    """Return the EXIF orientation of a decoded picture, None where it has none.

    The other tags stay unread: a resolution that makes no sense says nothing about the picture.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _DECODE_ERRORS:  # the EXIF block itself is broken, which viewers pass over too
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _scale_to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of wide samples with 8 bits a sample; PIL's own conversion would clip them.

    Raises:
        ValueError: nothing says which value is white.
    """
    samples = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # TIFF alone has other depths than 16 bits, and white that is 0
    if image.mode == "I":
        raise ValueError("32-bit or signed whole numbers do not say which value is white; save it with 8 or 16 bits")
    if image.mode == "F":
        if not np.all((samples >= 0) & (samples <= 1)):
            raise ValueError("floating-point samples must lie between 0 (black) and 1 (white)")
        grey = np.rint(samples * 255).astype(np.uint8)
    else:
        (num_bits,) = tags.get(ExifTags.Base.BitsPerSample, (16,))
        grey = (samples >> (num_bits - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[samples == transparent] = 255
    return Image.fromarray(grey)
