"""The groceries as own data: documents.jsonl, queries.jsonl and pictures.

Every train, val and test photo is asked about three times: alone, beside one other photo of its share, and among
four. Photos of a share appear in no other share's pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from demo.groceries.catalogue import Catalogue, Photo, Product, open_picture
from demo.groceries.mosaics import Layout, compose, draw_layout, list_references, phrase_question, pick_company
from demo.recipes.training_scenes import Reference
from pipeline.files.store import replace_dir, write_text
from pipeline.process.progress import Advance, track
from pipeline.types import SPLITS, Split

NUM_PHOTOS: Final = (1, 2, 4)
_JPEG_QUALITY: Final = 88


@dataclass(frozen=True, kw_only=True, slots=True)
class MosaicQuery:
    """A question about the photo at `target` of a picture's photos."""

    query_id: str
    split: Split
    question: str
    photos: tuple[Photo, ...]
    layout: Layout
    target: int
    reference: Reference


def plan_queries(catalogue: Catalogue, seed: int) -> Iterator[MosaicQuery]:
    """Yield every query; the same catalogue and seed give the same ones."""
    number = 0
    for split in SPLITS:
        photos = catalogue.photos[split]
        for photo in photos:
            for num_photos in NUM_PHOTOS:
                number += 1
                yield _plan_query(f"g{number:05d}", split, photo, photos, num_photos, seed + number)


def write_dataset(catalogue: Catalogue, seed: int, data_dir: Path) -> None:
    """Write the data set into `data_dir`, which appears whole or not at all and takes an older one's place.

    Raises:
        ImageError: a photo cannot be read.
    """
    queries = list(plan_queries(catalogue, seed))
    with (
        replace_dir(data_dir) as folder,
        track("groceries: pictures written", len(queries) + len(catalogue.products)) as advance,
    ):
        (folder / "images" / "documents").mkdir(parents=True)
        (folder / "images" / "queries").mkdir()
        _write_rows(folder / "documents.jsonl", map(build_document_row, catalogue.products))
        _write_rows(folder / "queries.jsonl", map(build_query_row, queries))
        _write_pictures(catalogue.products, queries, folder, advance)


def build_document_row(product: Product) -> dict[str, object]:
    """Return a product's row of documents.jsonl."""
    return {
        "doc_id": product.doc_id,
        "title": product.title,
        "text": product.description,
        "images": [_name_iconic(product)],
    }


def build_query_row(query: MosaicQuery) -> dict[str, object]:
    """Return a query's row of queries.jsonl; the box is in fractions of the picture."""
    return {
        "query_id": query.query_id,
        "split": query.split,
        "question": query.question,
        "image": _name_picture(query),
        "relevant": [query.photos[query.target].product.doc_id],
        "target_box": [round(edge, 5) for edge in query.layout.boxes[query.target].as_tuple()],
        "tags": {
            "scene": "single" if len(query.photos) == 1 else "mosaic",
            "photos": str(len(query.photos)),
            "reference": query.reference.kind,
        },
    }


def _plan_query(
    query_id: str, split: Split, photo: Photo, others: Sequence[Photo], num_photos: int, seed: int
) -> MosaicQuery:
    rng = np.random.default_rng((seed, 2))
    photos = pick_company(photo, others, num_photos, rng)
    layout = draw_layout(num_photos, rng)
    target = photos.index(photo)
    options = [option for option in list_references([p.product for p in photos], layout) if option.thing == target]
    reference = options[int(rng.integers(len(options)))]
    return MosaicQuery(
        query_id=query_id,
        split=split,
        question=phrase_question(reference.phrase, rng),
        photos=tuple(photos),
        layout=layout,
        target=target,
        reference=reference,
    )


def _write_pictures(
    products: Iterable[Product], queries: Iterable[MosaicQuery], folder: Path, advance: Advance
) -> None:
    for product in products:
        _save(open_picture(product.iconic_path), folder / _name_iconic(product))
        advance(1)
    for query in queries:
        _save(
            compose([open_picture(photo.path) for photo in query.photos], query.layout), folder / _name_picture(query)
        )
        advance(1)


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "JPEG", quality=_JPEG_QUALITY)


def _name_iconic(product: Product) -> str:
    return f"images/documents/{product.doc_id}.jpg"


def _name_picture(query: MosaicQuery) -> str:
    return f"images/queries/{query.query_id}.jpg"


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
