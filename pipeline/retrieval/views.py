"""Views of the queries' pictures as vectors: a picture is decoded once a call, a distinct crop is embedded once.

Shapes: N views, D dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Final

import numpy as np
from PIL import Image

from pipeline.core.boxes import box_to_px
from pipeline.errors import DataError
from pipeline.files.images import PictureFolder, crop_view
from pipeline.process.progress import Advance
from pipeline.retrieval.encoder import F32, Encoder, PictureTask, encode_in_stream
from pipeline.types import Box, Query

NamedView = tuple[str, Box | None]
"""A query's id and the region looked at; None is the full image."""

PixelBox = tuple[int, int, int, int]
ViewKey = tuple[str, PixelBox]
"""A query's id and a crop in whole pixels: boxes of the same pixels are one crop."""

_CACHED_PIXELS: Final = 64_000_000
"""Decoded pictures that are kept, about 200 MB."""
_CACHED_VECTORS: Final = 2**26
"""Numbers in the crops' vectors that are kept, 256 MB."""


class ViewEncoder:
    """Embeds crops of the queries' pictures and keeps the last vectors; not for several threads at once.

    Args:
        encoder: the frozen encoder.
        queries: those whose pictures may be looked at.
        pictures: where the pictures lie.
        batch_size: crops that go through the encoder at once.
    """

    def __init__(
        self, encoder: Encoder, queries: Mapping[str, Query], pictures: PictureFolder, batch_size: int
    ) -> None:
        self._encoder = encoder
        self._queries = queries
        self._pictures = _PictureCache(pictures)
        self._batch_size = batch_size
        self._vectors: OrderedDict[ViewKey, F32] = OrderedDict()
        self._num_encoded = 0

    @property
    def num_encoded(self) -> int:
        """Pictures that have gone through the encoder so far."""
        return self._num_encoded

    @property
    def queries(self) -> Mapping[str, Query]:
        """Query id -> query."""
        return self._queries

    def load_image(self, query_id: str) -> Image.Image:
        """Return the query's picture, upright; the last few are kept decoded.

        Raises:
            DataError: it cannot be read, or has another size than prepare found.
        """
        return self._load_checked(self._queries[query_id])

    def name_crop(self, query_id: str, box: Box | None) -> ViewKey | None:
        """Return what the crop is kept by; None for the full image, and for a box that covers every pixel."""
        if box is None:
            return None
        query = self._queries[query_id]
        box_px = box_to_px(box, query.width_px, query.height_px)
        return None if box_px == (0, 0, query.width_px, query.height_px) else (query_id, box_px)

    def encode(self, keys: Sequence[ViewKey], *, advance: Advance | None = None) -> F32:
        """Return the crops' vectors, (N, D), in the order of the keys.

        Args:
            keys: crops of any queries, in any order, again or for the first time.
            advance: told how many crops are done that had to be encoded.

        Raises:
            DataError: a picture cannot be read.
        """
        groups: dict[str, list[ViewKey]] = {}
        found = {key: self._vectors[key] for key in keys if key in self._vectors}
        for key in sorted(set(keys) - found.keys()):
            groups.setdefault(self._queries[key[0]].image_path, []).append(key)
        tasks = [PictureTask(len(group), partial(self._cut, group)) for group in groups.values()]
        stream = encode_in_stream(self._encoder, tasks, batch_size=self._batch_size)
        for group, vectors_ND in zip(groups.values(), stream, strict=True):
            self._num_encoded += len(group)
            found |= zip(group, vectors_ND, strict=True)
            if advance is not None:
                advance(len(group))
        self._keep(found)
        if not keys:
            return np.empty((0, self._encoder.dim), dtype=np.float32)
        return np.stack([found[key] for key in keys])

    def _keep(self, found: Mapping[ViewKey, F32]) -> None:
        self._vectors |= found
        while len(self._vectors) * self._encoder.dim > _CACHED_VECTORS:
            self._vectors.popitem(last=False)

    def _cut(self, keys: Sequence[ViewKey]) -> list[Image.Image]:
        side_px = self._encoder.input_size_px
        cuts = []
        for query_id, box_px in keys:
            query = self._queries[query_id]
            image = self._load_checked(query)
            cuts.append(crop_view(image, _to_box(box_px, query), (side_px, side_px)))
        return cuts

    def _load_checked(self, query: Query) -> Image.Image:
        image = self._pictures.load(query.image_path)
        if image.size != (query.width_px, query.height_px):
            found = f"{image.width} x {image.height}"
            raise DataError(
                f"is {found}, but prepare found {query.width_px} x {query.height_px}; run prepare again",
                path=query.image_path,
            )
        return image


class ViewScorer:
    """What scorers of views share, whatever they rank: the pictures and questions, and what was embedded of them.

    Args:
        views: embeds the crops.
    """

    def __init__(self, views: ViewEncoder) -> None:
        self.views = views

    @property
    def num_encoded(self) -> int:
        """Pictures that have gone through the encoder so far."""
        return self.views.num_encoded

    @property
    def queries(self) -> Mapping[str, Query]:
        """Query id -> query."""
        return self.views.queries

    def load_image(self, query_id: str) -> Image.Image:
        """Return the query's picture, upright; the last few are kept decoded.

        Raises:
            DataError: it cannot be read, or has another size than prepare found.
        """
        return self.views.load_image(query_id)


class _PictureCache:
    """Keeps the pictures used last, up to a number of pixels; safe to ask from several threads."""

    def __init__(self, pictures: PictureFolder, max_pixels: int = _CACHED_PIXELS) -> None:
        self._folder = pictures
        self._max_pixels = max_pixels
        self._pictures: OrderedDict[str, Image.Image] = OrderedDict()
        self._num_pixels = 0
        self._lock = Lock()

    def load(self, image_path: str) -> Image.Image:
        with self._lock:
            if image_path in self._pictures:
                self._pictures.move_to_end(image_path)
                return self._pictures[image_path]
        image = self._folder.load(image_path)
        with self._lock:
            if image_path not in self._pictures:
                self._pictures[image_path] = image
                self._num_pixels += image.width * image.height
            while self._num_pixels > self._max_pixels and len(self._pictures) > 1:
                _, dropped = self._pictures.popitem(last=False)
                self._num_pixels -= dropped.width * dropped.height
        return image


def _to_box(box_px: PixelBox, query: Query) -> Box:
    left, top, right, bottom = box_px
    return Box(left / query.width_px, top / query.height_px, right / query.width_px, bottom / query.height_px)
