"""Every picture that rows name is decoded once before it counts: what it is, or why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image

from pipeline.core.inputs.lookalikes import Fingerprint
from pipeline.core.inputs.texts import is_one_line
from pipeline.files.images import ImageError, ImageFacts, inspect_image
from pipeline.process.progress import Advance
from pipeline.sources.judging.fingerprint import compute_fingerprint
from pipeline.workspace import is_plain_relative

NUM_THREADS: Final = 2
BATCH_SIZE: Final = 256

ImageReport = Mapping[str, ImageFacts | ImageError]
"""What decoding found, by image path."""

Item = TypeVar("Item")


class PictureInspector:
    """Decodes pictures of one data folder; PIL and hashlib let go of the interpreter lock, so threads do."""

    def __init__(self, data_dir: Path, max_pixels: int) -> None:
        self._data_dir = data_dir
        self._max_pixels = max_pixels

    def inspect(self, image_paths: Iterable[str], advance: Advance, *, look: bool = False) -> ImageReport:
        """Decode pictures, each once; an interrupt waits for one batch.

        Args:
            image_paths: relative to the data folder.
            advance: told how many pictures are done.
            look: take their fingerprints too; only queries' pictures are compared by looks.
        """
        inspect_one = partial(self._inspect_one, look=compute_fingerprint if look else None)
        report: dict[str, ImageFacts | ImageError] = {}
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for batch in split_batches(dict.fromkeys(image_paths), BATCH_SIZE):
                report.update(zip(batch, pool.map(inspect_one, batch), strict=True))
                advance(len(batch))
        return report

    def _inspect_one(
        self, image_path: str, look: Callable[[Image.Image], Fingerprint] | None
    ) -> ImageFacts | ImageError:
        path = self._data_dir / image_path
        try:
            if not is_plain_relative(image_path):
                raise ImageError("unsafe_path", "must be relative, without `..` or `\\`", path=path)
            if not is_one_line(image_path):
                raise ImageError("unsafe_path", "holds a line end or control character", path=path)
            return inspect_image(path, max_pixels=self._max_pixels, root=self._data_dir, look=look)
        except ImageError as error:
            return error


def split_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of at most `size`."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
