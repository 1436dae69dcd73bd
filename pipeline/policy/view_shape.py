"""How the crop lies around the box that a policy names; one shape for all pictures, kept beside the policy's weights.

A policy points: its box lies close around a thing. Which crop of that thing the encoder recognises best is the
encoder's matter, and a tiny change that no policy needs to learn token by token (docs/method.md, D73).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from pipeline.core.boxes import Frame
from pipeline.core.completion import parse_completion
from pipeline.core.region_search import Reshaping
from pipeline.errors import DataError, ModelError
from pipeline.files.store import read_json, write_json
from pipeline.types import Crop, Decision

_FILE: Final = "view_shape.json"
AS_NAMED: Final = Reshaping()
"""The crop is the box."""


def load_view_shape(folder: Path) -> Reshaping:
    """Return the shape that lies in a policy's folder; a model that was not trained here crops its boxes as named.

    Raises:
        ModelError: the file is no such shape.
    """
    path = folder / _FILE
    if not path.is_file():
        return AS_NAMED
    try:
        content = read_json(path)
        margin, is_square = content["margin"], content["is_square"]
    except (DataError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: must give margin and is_square") from error
    is_margin = isinstance(margin, int | float) and math.isfinite(margin) and margin >= 0.0
    if not is_margin or not isinstance(is_square, bool):
        raise ModelError(f"{path}: margin must be a number that is not negative, is_square true or false")
    return Reshaping(float(margin), is_square)


def save_view_shape(shape: Reshaping, folder: Path) -> None:
    """Write the shape into a policy's folder; the box as named needs no file."""
    if shape == AS_NAMED:
        (folder / _FILE).unlink(missing_ok=True)
    else:
        write_json(folder / _FILE, {"margin": shape.margin, "is_square": shape.is_square})


def read_decision(text: str, frame: Frame, shape: Reshaping, size_px: tuple[int, int]) -> Decision:
    """Return the decision that a completion states, the crop in its final shape.

    Args:
        text: what the policy said.
        frame: of the boxes on that picture.
        shape: how a crop lies around a named box.
        size_px: the picture's width and height.
    """
    decision = parse_completion(text, frame)
    return Crop(shape.apply(decision.box, *size_px)) if isinstance(decision, Crop) else decision
