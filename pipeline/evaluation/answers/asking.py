"""How a policy is asked about queries: in batches, so that few pictures are in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from PIL import Image

from pipeline.config import Params
from pipeline.files.images import PictureFolder
from pipeline.process.progress import track
from pipeline.types import Crop, Decision, Query

GREY = (128, 128, 128)
Replied = TypeVar("Replied")


class Reply(Protocol):
    """What a policy replies to one query."""

    @property
    def decision(self) -> Decision:
        """What the completion says."""

    @property
    def completion(self) -> str:
        """The text as generated."""

    @property
    def p_region(self) -> float:
        """Probability that the policy, unforced, opens a region."""


class DecidingPolicy(Protocol):
    """The part of a policy that evaluation needs."""

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool = False
    ) -> Sequence[Reply]:
        """Answer each question about its image, with a region whatever it thinks where that is forced."""

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, seeds: Sequence[int]
    ) -> Sequence[Sequence[Reply]]:
        """Draw several answers to each question, REGION forced, at temperature 1; each question has its seed."""


def ask_in_batches(
    ask: Callable[..., Sequence[Replied]],
    queries: Sequence[Query],
    data_dir: Path,
    params: Params,
    *,
    label: str,
    blind: bool = False,
    seeds: Sequence[int] | None = None,
) -> list[Replied]:
    """Return what `ask` replies to every query, in their order and in batches of `batches.policy`.

    Args:
        ask: a method of a policy.
        queries: what it is asked.
        data_dir: where the images lie.
        params: batch size and the limit on image sizes.
        label: of the progress lines.
        blind: show a grey picture of the image's size instead of the image.
        seeds: of the queries, one each, where the policy draws lots.

    Raises:
        DataError: a picture cannot be read.
    """
    replies: list[Replied] = []
    size = params.batches.policy
    pictures = PictureFolder(data_dir, params.data.max_image_pixels)
    with track(label, len(queries)) as advance:
        for start in range(0, len(queries), size):
            batch = queries[start : start + size]
            images = [_paint_grey(query) if blind else pictures.load(query.image_path) for query in batch]
            lots = {} if seeds is None else {"seeds": seeds[start : start + size]}
            replies += ask(images, [query.question for query in batch], **lots)
            advance(len(batch))
    return replies


def list_cropped(queries: Sequence[Query], replies: Sequence[Reply]) -> list[Query]:
    """Return the queries that the replies crop; both are aligned."""
    return [query for query, reply in zip(queries, replies, strict=True) if isinstance(reply.decision, Crop)]


def _paint_grey(query: Query) -> Image.Image:
    return Image.new("RGB", (query.width_px, query.height_px), GREY)
