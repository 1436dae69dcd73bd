"""How the crop lies around the box that a policy names; one shape for all pictures, kept beside the policy's weights.

A policy points: its box lies close around a thing. Which crop of that thing the encoder recognises best is the
encoder's matter, and a tiny change that no policy needs to learn token by token (docs/method.md, D73).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.core.region_search import Reshaping
from pipeline.errors import ModelError
from pipeline.files.store import read_json, write_json

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
        return Reshaping(float(content["margin"]), bool(content["is_square"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: must give margin and is_square") from error


def save_view_shape(shape: Reshaping, folder: Path) -> None:
    """Write the shape into a policy's folder; the box as named needs no file."""
    if shape != AS_NAMED:
        write_json(folder / _FILE, {"margin": shape.margin, "is_square": shape.is_square})
