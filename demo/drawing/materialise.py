"""Writes a demo world to disk in the own-data format: documents.jsonl, queries.jsonl and JPEG pictures."""

import json
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from demo.drawing.world import DocumentSpec, GallerySpec, QuerySpec, World, draw_gallery_picture, draw_query
from pipeline.files.store import replace_dir
from pipeline.process.progress import track

_NUM_PROCESSES: Final = 2
_CHUNK: Final = 32
_JPEG_QUALITY: Final = 92


def materialise(world: World, data_dir: Path) -> None:
    """Writes a world into `data_dir`, which appears whole or not at all.

    Pictures are drawn by two processes; an older `data_dir` is replaced.

    Raises:
        WriteError: If the folder cannot be written.
    """
    with replace_dir(data_dir) as folder:
        (folder / "images" / "documents").mkdir(parents=True)
        (folder / "images" / "queries").mkdir(parents=True)
        _save_rows(folder / "documents.jsonl", (build_document_row(spec) for spec in world.documents))
        _save_rows(folder / "queries.jsonl", (build_query_row(spec) for spec in world.queries))
        _save_pictures(world, folder)


def build_document_row(spec: DocumentSpec) -> dict[str, object]:
    """Returns a document's row of documents.jsonl."""
    entity = spec.entity
    images = [_name_gallery(picture) for picture in spec.gallery]
    return {"doc_id": entity.entity_id, "title": entity.title, "text": entity.article, "images": images}


def build_query_row(spec: QuerySpec) -> dict[str, object]:
    """Returns a query's row of queries.jsonl; the box is in fractions of the picture."""
    return {
        "query_id": spec.query_id,
        "split": spec.split,
        "question": spec.question,
        "image": _name_query(spec),
        "relevant": [spec.target.entity_id],
        "target_box": [round(value, 5) for value in spec.target_box],
        "tags": {
            "reference": spec.reference,
            "seen": "seen" if spec.is_seen else "unseen",
            "scene": "closeup" if spec.is_close_up else "clutter",
        },
    }


def _name_gallery(spec: GallerySpec) -> str:
    return f"images/documents/{spec.entity.entity_id}_{spec.picture_index}.jpg"


def _name_query(spec: QuerySpec) -> str:
    return f"images/queries/{spec.query_id}.jpg"


def _save_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _save_pictures(world: World, folder: Path) -> None:
    specs: list[GallerySpec | QuerySpec] = [*(p for d in world.documents for p in d.gallery), *world.queries]
    jobs = [(folder, specs[start : start + _CHUNK]) for start in range(0, len(specs), _CHUNK)]
    with (
        multiprocessing.get_context("spawn").Pool(_NUM_PROCESSES) as pool,
        track("demo: pictures drawn", len(specs)) as advance,
    ):
        for num_drawn in pool.imap_unordered(_save_chunk, jobs):
            advance(num_drawn)


def _save_chunk(job: tuple[Path, list[GallerySpec | QuerySpec]]) -> int:
    """Draws and writes some pictures (in a pool worker); returns how many."""
    folder, specs = job
    for spec in specs:
        if isinstance(spec, QuerySpec):
            image, name = draw_query(spec).image, _name_query(spec)
        else:
            image, name = draw_gallery_picture(spec).image, _name_gallery(spec)
        image.save(folder / name, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return len(specs)
