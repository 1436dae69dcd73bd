"""One entry per model family: the coordinate frame that it speaks boxes in.

A family is named by its configuration's `model_type`. What else differs between families (special tokens, order of
picture and text) lives in the checkpoint's own processor and chat template.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedConfig

from pipeline.core.boxes import Frame
from pipeline.errors import ModelError

FRAME_KEY = "region_frame_units"
"""Entry of a checkpoint's config.json: the side of the square frame that its boxes are spoken in."""


def _read_llava_frame(config: PreTrainedConfig) -> Frame:
    units = getattr(config, FRAME_KEY, None)
    if not isinstance(units, int) or units < 1:
        raise ModelError(
            f"{config.name_or_path}: a llava checkpoint must say {FRAME_KEY} (a positive integer) in config.json"
        )
    return Frame(units, units)


_FRAMES: dict[str, Callable[[PreTrainedConfig], Frame]] = {"llava": _read_llava_frame}


def read_frame(config: PreTrainedConfig) -> Frame:
    """Return the coordinate frame of a checkpoint's boxes.

    Args:
        config: the checkpoint's transformers configuration.

    Raises:
        ModelError: the family is unknown, or the checkpoint does not say its frame.
    """
    if config.model_type not in _FRAMES:
        raise ModelError(
            f"{config.name_or_path}: model family {config.model_type!r} is not supported; "
            f"known: {', '.join(sorted(_FRAMES))}"
        )
    return _FRAMES[config.model_type](config)
