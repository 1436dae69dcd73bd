"""The groceries as own data: documents.jsonl, queries.jsonl and pictures.

Every train, val and test photo is asked about three times: alone, beside one other photo of its share, and among
four. Photos of a share appear in no other share's pictures. A document shows its product's clean picture and some
photos of the share "models", which no query shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from demo.groceries.catalogue import Catalogue, Photo, Product, open_picture
from demo.groceries.mosaics import (
    SINGLE,
    Layout,
    compose,
    draw_layout,
    list_references,
    phrase_question,
    pick_company,
)
from demo.recipes.training_scenes import Reference
from pipeline.files.store import replace_dir, write_text
from pipeline.process.progress import Advance, track
from pipeline.types import SPLITS, Split

NUM_PHOTOS: Final = (1, 2, 4)
MAX_GALLERY: Final = 8
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


def pick_gallery(catalogue: Catalogue) -> dict[Product, tuple[Photo, ...]]:
    """Return up to `MAX_GALLERY` photos of each product: the first that the catalogue's seed dealt to the models."""
    gallery: dict[Product, tuple[Photo, ...]] = dict.fromkeys(catalogue.products, ())
    for photo in catalogue.photos["models"]:
        gallery[photo.product] = (*gallery[photo.product], photo)[:MAX_GALLERY]
    return gallery


def write_dataset(catalogue: Catalogue, seed: int, data_dir: Path) -> None:
    """Write the data set into `data_dir`, which appears whole or not at all and takes an older one's place.

    Raises:
        ImageError: a photo cannot be read.
    """
    queries, gallery = list(plan_queries(catalogue, seed)), pick_gallery(catalogue)
    num_pictures = len(queries) + len(gallery) + sum(map(len, gallery.values()))
    with replace_dir(data_dir) as folder, track("groceries: pictures written", num_pictures) as advance:
        (folder / "images" / "documents").mkdir(parents=True)
        (folder / "images" / "queries").mkdir()
        _write_rows(
            folder / "documents.jsonl", (build_document_row(product, len(gallery[product])) for product in gallery)
        )
        _write_rows(folder / "queries.jsonl", map(build_query_row, queries))
        _write_document_pictures(gallery, folder, advance)
        _write_query_pictures(queries, folder, advance)


def build_document_row(product: Product, num_photos: int) -> dict[str, object]:
    """Return a product's row of documents.jsonl, with so many photos beside its clean picture."""
    return {
        "doc_id": product.doc_id,
        "title": product.title,
        "text": product.description,
        "images": [_name_iconic(product), *(_name_photo(product, number) for number in range(num_photos))],
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


def _write_document_pictures(gallery: Mapping[Product, Sequence[Photo]], folder: Path, advance: Advance) -> None:
    for product, photos in gallery.items():
        _save(open_picture(product.iconic_path), folder / _name_iconic(product))
        for number, photo in enumerate(photos):
            _save(compose([open_picture(photo.path)], SINGLE), folder / _name_photo(product, number))
        advance(1 + len(photos))


def _write_query_pictures(queries: Iterable[MosaicQuery], folder: Path, advance: Advance) -> None:
    for query in queries:
        _save(
            compose([open_picture(photo.path) for photo in query.photos], query.layout), folder / _name_picture(query)
        )
        advance(1)


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "JPEG", quality=_JPEG_QUALITY)


def _name_iconic(product: Product) -> str:
    return f"images/documents/{product.doc_id}.jpg"


def _name_photo(product: Product, number: int) -> str:
    return f"images/documents/{product.doc_id}-photo-{number}.jpg"


def _name_picture(query: MosaicQuery) -> str:
    return f"images/queries/{query.query_id}.jpg"


def _write_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
