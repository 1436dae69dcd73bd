"""One entry per family of vision-language models: the frame that it speaks boxes in, and who reads its processor.

A family is named by its configuration's `model_type`.

| family | frame of its boxes | processor |
|---|---|---|
| llava | a square that config.json must name (`region_frame_units`) | its own |
| qwen2_5_vl | pixels of the picture as the model sees it, resized | image only |
| qwen2_vl, qwen3_vl | 0 to 1000, whatever the picture's size | image only |
| idefics3 | 0 to 1000, or the square that config.json names; SFT teaches it, pretraining did not | its own |
| smolvlm | as idefics3 | image only |

Qwen2-VL and Qwen3-VL were trained to speak thousandths; Qwen2.5-VL speaks pixels of its resized input, so equal numbers
mean other boxes on other pictures. The public code of the paper cut such pixels out of the original picture.

The prompt's order of picture and text is the chat template's; `conversation.py` names the picture first, as all
of these were trained, and the demo's own template turns the two round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoImageProcessor, AutoProcessor, PreTrainedConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from pipeline.core.boxes import Frame
from pipeline.errors import ModelError
from pipeline.learn import image_only

FRAME_KEY: Final = "region_frame_units"
"""Entry of a checkpoint's config.json: the side of the square frame that its boxes are spoken in."""

_UNITS: Final = 1000

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

FrameOf = Callable[[int, int], Frame]
"""Width and height of an upright picture, in pixels -> the frame that boxes on it are spoken in."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between families.

    Attributes:
        build_frames: configuration and processor -> the frame of each picture; raises ModelError if the
            configuration does not say what the family needs.
        processor_class: reads the processor; without one, AutoProcessor does.
    """

    build_frames: Callable[[PreTrainedConfig, Untyped], FrameOf]
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
    """Return frames in pixels of the resized picture: sides are whole patches, their product is bounded."""
    resizer = processor.image_processor

    def get_frame(width_px: int, height_px: int) -> Frame:
        try:
            height, width = smart_resize(
                height_px,
                width_px,
                resizer.patch_size * resizer.merge_size,
                min_pixels=resizer.size["shortest_edge"],
                max_pixels=resizer.size["longest_edge"],
            )
        except ValueError as error:
            raise ModelError(
                f"{config.name_or_path}: cannot read a picture of {width_px} x {height_px} px: {error}"
            ) from error
        return Frame(width, height)

    return get_frame


_FAMILIES: Final = {
    "llava": Family(lambda config, _: _build_named_square(config, None)),
    "qwen2_vl": Family(lambda _, __: _build_square(_UNITS), image_only.Qwen2VLProcessor),
    "qwen2_5_vl": Family(_build_resized, image_only.Qwen2_5_VLProcessor),
    "qwen3_vl": Family(lambda _, __: _build_square(_UNITS), image_only.Qwen3VLProcessor),
    "idefics3": Family(lambda config, _: _build_named_square(config, _UNITS)),
    "smolvlm": Family(lambda config, _: _build_named_square(config, _UNITS), image_only.SmolVLMProcessor),
}
