"""Rows of a training set that carry their picture only while they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image


class AttachImages:
    """Adds each row's picture when the row is read, so that no picture waits in memory.

    Args:
        load_image: query id -> upright picture.
    """

    def __init__(self, load_image: Callable[[str], Image.Image]) -> None:
        self._load_image = load_image

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the rows of a batch, given by their column `query_id`, with a column `images`."""
        return {**batch, "images": [[self._load_image(query_id)] for query_id in batch["query_id"]]}
