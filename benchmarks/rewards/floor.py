"""The least that any reward must do: decode each picture once, cut each distinct crop, embed them in full batches."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from benchmarks.rewards.setting import Completions, Setting
from pipeline.core.boxes import box_to_px
from pipeline.retrieval.encoder import F32
from pipeline.types import Crop

PixelBox = tuple[int, int, int, int]


def list_distinct_crops(setting: Setting, completions: Completions) -> dict[str, list[PixelBox]]:
    """Return query id -> crops in whole pixels, each once; one that covers its whole picture is none."""
    crops: dict[str, dict[PixelBox, None]] = {}
    for query_id, decision in zip(completions.query_ids, completions.decisions, strict=True):
        if isinstance(decision, Crop):
            query = setting.queries[query_id]
            box_px = box_to_px(decision.box, query.width_px, query.height_px)
            if box_px != (0, 0, query.width_px, query.height_px):
                crops.setdefault(query_id, {})[box_px] = None
    return {query_id: list(boxes) for query_id, boxes in crops.items()}


def cut_crops(setting: Setting, crops: Mapping[str, list[PixelBox]]) -> list[Image.Image]:
    """Decode each picture once and return its crops at the encoder's input size."""
    side_px = setting.encoder.input_size_px
    cuts = []
    for query_id, boxes_px in crops.items():
        image = setting.pictures.load(setting.queries[query_id].image_path)
        cuts += [image.crop(box_px).resize((side_px, side_px), Image.Resampling.BICUBIC) for box_px in boxes_px]
    return cuts


def embed_crops(setting: Setting, crops: Mapping[str, list[PixelBox]]) -> F32:
    """Return one vector per crop: the floor."""
    return setting.encoder.encode_images(cut_crops(setting, crops))
