"""Writes a demo world to disk in the own-data format: documents.jsonl, queries.jsonl and JPEG pictures."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pipeline.demo.world import DocumentPlan, GalleryPlan, QueryPlan, World, draw_gallery_plan, draw_query
from pipeline.progress import track

_NUM_PROCESSES: Final = 2
_CHUNK: Final = 32
_JPEG_QUALITY: Final = 92


def materialise(world: World, data_dir: Path) -> None:
    """Writes a world into `data_dir`, which appears whole or not at all.

    Pictures are drawn by two processes into a temporary sibling folder that is renamed at the end; an older
    `data_dir` is replaced.

    Raises:
        OSError: If the folder cannot be written.
    """
    partial_dir = data_dir.with_name(f".{data_dir.name}.partial-{os.getpid()}")
    shutil.rmtree(partial_dir, ignore_errors=True)
    try:
        (partial_dir / "images" / "documents").mkdir(parents=True)
        (partial_dir / "images" / "queries").mkdir(parents=True)
        _save_rows(partial_dir / "documents.jsonl", (build_document_row(plan) for plan in world.documents))
        _save_rows(partial_dir / "queries.jsonl", (build_query_row(plan) for plan in world.queries))
        _save_pictures(world, partial_dir)
        _replace(partial_dir, data_dir)
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


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


def _replace(new_dir: Path, old_dir: Path) -> None:
    """Renames `new_dir` to `old_dir`; an older folder is set aside first and removed last."""
    aside_dir = old_dir.with_name(f".{old_dir.name}.replaced-{os.getpid()}")
    if old_dir.exists():
        old_dir.rename(aside_dir)
    new_dir.rename(old_dir)
    shutil.rmtree(aside_dir, ignore_errors=True)
