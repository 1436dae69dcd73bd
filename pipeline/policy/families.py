"""One entry per family of vision-language models: the frame that it speaks boxes in, and who reads its processor.

A family is named by its configuration's `model_type`.

| family | frame of its boxes | processor | pictures that it cannot read |
|---|---|---|---|
| llava | a square that config.json must name (`region_frame_units`) | its own | above 200:1, unless squashed |
| qwen2_5_vl | pixels of the picture as the model sees it, resized | image only | above 200:1 |
| qwen2_vl, qwen3_vl | 0 to 1000, whatever the picture's size | image only | above 200:1 |
| idefics3 | 0 to 1000, or the square that config.json names; SFT teaches it, pretraining did not | its own | none |
| smolvlm | as idefics3 | image only | none |

Qwen2-VL and Qwen3-VL were trained to speak thousandths; Qwen2.5-VL speaks pixels of its resized input, so equal numbers
mean other boxes on other pictures. The public code of the paper cut such pixels out of the original picture.

The prompt's order of picture and text is the chat template's; `conversation.py` names the picture first, as all
of these were trained, and the demo's own template turns the two round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pipeline.core.boxes import Frame
from pipeline.errors import ModelError
from pipeline.models.model_folder import check_model_folder, resolve_model_path
from pipeline.policy import image_only
from pipeline.types import Query

FRAME_KEY: Final = "region_frame_units"
"""Entry of a checkpoint's config.json: the side of the square frame that its boxes are written in."""

_UNITS: Final = 1000
_MAX_RATIO: Final = 200
"""Longer to shorter side that LLaVA is given, as Qwen's processors have it."""

LOADING_ERRORS: Final = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises at a broken folder."""

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

FrameOf = Callable[[int, int], Frame]
"""Width and height of an upright picture, in pixels -> the frame that boxes on it are written in."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between families.

    Attributes:
        build_frames: configuration and processor -> the frame of each picture; raises ModelError if the
            configuration does not say what the family needs.
        check_size: given the image processor, width and height of a picture in pixels, raises ValueError where the
            family cannot read it; None where it reads all.
        processor_class: reads the processor; without one, AutoProcessor does.
    """

    build_frames: Callable[[PreTrainedConfig, Untyped], FrameOf]
    check_size: Callable[[Untyped, int, int], object] | None = None
    processor_class: type[Untyped] | None = None


def find_family(config: PreTrainedConfig) -> Family:
    """Return the entry of a checkpoint's family.

    Args:
        config: the checkpoint's transformers configuration.

    Raises:
        ModelError: the family is unknown.
    """
    if config.model_type not in _FAMILIES:
        raise ModelError(
            f"{config.name_or_path}: model family {config.model_type!r} is not supported; "
            f"known: {', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[config.model_type]


def load_processor(folder: Path, family: Family) -> Untyped:
    """Return a checkpoint's processor, which pads on the left and resizes with PIL, torchvision or not."""
    reader = family.processor_class or AutoProcessor
    processor = reader.from_pretrained(folder, local_files_only=True)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    processor.tokenizer.padding_side = "left"
    return processor


def build_frames(config: PreTrainedConfig, processor: Untyped) -> FrameOf:
    """Return the frame of each picture; it refuses, with a ModelError, a picture that the family cannot read.

    Raises:
        ModelError: the family is unknown, or the configuration does not say what it needs.
    """
    family = find_family(config)
    find_frame, check_size = family.build_frames(config, processor), family.check_size

    def get_frame(width_px: int, height_px: int) -> Frame:
        try:
            if check_size is not None:
                check_size(processor.image_processor, width_px, height_px)
        except ValueError as error:
            raise ModelError(
                f"{config.model_type} cannot read a picture of {width_px} x {height_px} px: {error}"
            ) from error
        return find_frame(width_px, height_px)

    return get_frame


def load_frames(path: str | Path) -> FrameOf:
    """Return `build_frames` of a checkpoint without opening its weights.

    Args:
        path: folder of a whole model, such as `policy.path`.

    Raises:
        ModelError: the folder is missing or broken, or as for `build_frames`.
    """
    folder = resolve_model_path(path)
    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return build_frames(config, load_processor(folder, find_family(config)))
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error


def check_pictures(get_frame: FrameOf, queries: Iterable[Query]) -> None:
    """Refuse queries whose pictures the policy cannot read, by their sizes alone. Encoders read pictures of any shape.

    Raises:
        ModelError: there are some; it names the first.
    """
    refused: list[tuple[str, str]] = []
    for query in queries:
        try:
            get_frame(query.width_px, query.height_px)
        except ModelError as error:
            refused.append((query.image_path, f"(query {query.query_id}) {error}"))
    if refused:
        path, reason = refused[0]
        num_others = len({path for path, _ in refused}) - 1
        others = f"; neither can it read {num_others} others" if num_others else ""
        raise ModelError(f"{path} {reason}{others}; crop such pictures, or leave their queries out")


def _build_named_square(config: PreTrainedConfig, default: int | None) -> FrameOf:
    units = getattr(config, FRAME_KEY, default)
    if not isinstance(units, int) or units < 1:
        raise ModelError(
            f"{config.name_or_path}: a {config.model_type} checkpoint must say {FRAME_KEY} (a positive integer) "
            "in config.json"
        )
    return _build_square(units)


def _build_square(units: int) -> FrameOf:
    frame = Frame(units, units)
    return lambda _width_px, _height_px: frame


def _build_resized(config: PreTrainedConfig, processor: Untyped) -> FrameOf:
    """Return frames in pixels of the resized picture."""
    return lambda width_px, height_px: Frame(*_measure_patches(processor.image_processor, width_px, height_px))


def _measure_patches(resizer: Untyped, width_px: int, height_px: int) -> tuple[int, int]:
    """Return the size of Qwen's resized picture: sides are whole patches, their product is bounded.

    Raises:
        ValueError: the picture is too long for it.
    """
    height, width = smart_resize(
        height_px,
        width_px,
        resizer.patch_size * resizer.merge_size,
        min_pixels=resizer.size["shortest_edge"],
        max_pixels=resizer.size["longest_edge"],
    )
    return width, height


def _check_ratio(resizer: Untyped, width_px: int, height_px: int) -> None:
    """Refuse long pictures where the shorter side is resized to the input's and the middle cut out.

    They would be blown up to any size, until memory ends, to show a sliver.

    Raises:
        ValueError: the picture is too long.
    """
    ratio = max(width_px, height_px) / min(width_px, height_px)
    if resizer.size.shortest_edge is not None and ratio > _MAX_RATIO:
        raise ValueError(f"absolute aspect ratio must be smaller than {_MAX_RATIO}, got {ratio}")


_FAMILIES: Final = {
    "llava": Family(lambda config, _: _build_named_square(config, None), _check_ratio),
    "qwen2_vl": Family(lambda _, __: _build_square(_UNITS), _measure_patches, image_only.Qwen2VLProcessor),
    "qwen2_5_vl": Family(_build_resized, _measure_patches, image_only.Qwen2_5_VLProcessor),
    "qwen3_vl": Family(lambda _, __: _build_square(_UNITS), _measure_patches, image_only.Qwen3VLProcessor),
    "idefics3": Family(lambda config, _: _build_named_square(config, _UNITS)),
    "smolvlm": Family(lambda config, _: _build_named_square(config, _UNITS), None, image_only.SmolVLMProcessor),
}
