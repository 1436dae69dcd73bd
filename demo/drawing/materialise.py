"""Writes a demo world to disk in the own-data format: documents.jsonl, queries.jsonl and JPEG pictures."""

import json
import multiprocessing
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from demo.drawing.world import DocumentPlan, GalleryPlan, QueryPlan, World, draw_gallery_plan, draw_query
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
        _save_rows(folder / "documents.jsonl", (build_document_row(plan) for plan in world.documents))
        _save_rows(folder / "queries.jsonl", (build_query_row(plan) for plan in world.queries))
        _save_pictures(world, folder)


def build_document_row(plan: DocumentPlan) -> dict[str, object]:
    """Returns a document's row of documents.jsonl."""
    entity = plan.entity
    images = [_name_gallery(picture) for picture in plan.gallery]
    return {"doc_id": entity.entity_id, "title": entity.title, "text": entity.article, "images": images}


def build_query_row(plan: QueryPlan) -> dict[str, object]:
    """Returns a query's row of queries.jsonl; the box is in fractions of the picture."""
    return {
        "query_id": plan.query_id,
        "split": plan.split,
        "question": plan.question,
        "image": _name_query(plan),
        "relevant": [plan.target.entity_id],
        "target_box": [round(value, 5) for value in plan.target_box],
        "tags": {
            "reference": plan.reference,
            "seen": "seen" if plan.is_seen else "unseen",
            "scene": "closeup" if plan.is_close_up else "clutter",
        },
    }


def _name_gallery(plan: GalleryPlan) -> str:
    return f"images/documents/{plan.entity.entity_id}_{plan.picture_index}.jpg"


def _name_query(plan: QueryPlan) -> str:
    return f"images/queries/{plan.query_id}.jpg"


def _save_rows(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _save_pictures(world: World, folder: Path) -> None:
    plans: list[GalleryPlan | QueryPlan] = [*(p for d in world.documents for p in d.gallery), *world.queries]
    jobs = [(folder, plans[start : start + _CHUNK]) for start in range(0, len(plans), _CHUNK)]
    with (
        multiprocessing.get_context("spawn").Pool(_NUM_PROCESSES) as pool,
        track("demo: pictures drawn", len(plans)) as advance,
    ):
        for num_drawn in pool.imap_unordered(_save_chunk, jobs):
            advance(num_drawn)


def _save_chunk(job: tuple[Path, list[GalleryPlan | QueryPlan]]) -> int:
    """Draws and writes some pictures (in a pool worker); returns how many."""
    folder, plans = job
    for plan in plans:
        if isinstance(plan, QueryPlan):
            image, name = draw_query(plan).image, _name_query(plan)
        else:
            image, name = draw_gallery_plan(plan).image, _name_gallery(plan)
        image.save(folder / name, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return len(plans)
