"""A composed set as own data in a folder that stands alone: documents, questions, pictures.

It is made from the tables of `prepare`, so the source's form makes no difference. Queries and documents are records in
memory; of the pictures only those in work are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pipeline.config import DataParams
from pipeline.errors import ConfigError, DataError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents, replace_dir
from pipeline.process.progress import track
from pipeline.sources.composites import Asked, Composite, Single
from pipeline.sources.composites.composition import ComposeSettings, Composition, compose
from pipeline.sources.composites.pictures import join_photos
from pipeline.sources.formats.jsonl import DOCUMENTS_FILE, QUERIES_FILE
from pipeline.sources.judging.inspection import BATCH_SIZE, NUM_THREADS, split_batches
from pipeline.types import SPLITS, Box, Document, Split
from pipeline.workspace import Workspace

PAIRS_FILE: Final = "composites.jsonl"

_COMPOSITES: Final = "images/composites"
_SOURCE: Final = "images/source"
_JPEG_QUALITY: Final = 95
_PAIR_KEYS: Final = ("image", "split", "left", "right", "left_box", "right_box", "asked")


def compose_dataset(params: DataParams, workspace: Workspace, out: Path, settings: ComposeSettings) -> Composition:
    """Write the composed set to `out`, which appears whole or not at all.

    Args:
        params: those that the tables were prepared with.
        workspace: its tables say what there is, its data folder holds the pictures.
        out: takes the place of an earlier composed set, of nothing else.
        settings: how it is composed.

    Raises:
        StageError: prepare has not run.
        ConfigError: `out` is in use, or lies in the data.
        DataError: no two photos may stand side by side, or a file cannot be read.
    """
    _check_place(out, workspace.data_dir)
    composition = compose(params, workspace.tables_dir, settings)
    documents = load_documents(workspace.tables_dir / "documents.parquet")
    with replace_dir(out) as folder:
        _write_documents(documents, workspace.data_dir, folder)
        with (
            (folder / QUERIES_FILE).open("w", encoding="utf-8") as queries,
            (folder / PAIRS_FILE).open("w", encoding="utf-8") as pairs,
        ):
            for pair_row, query_rows in _write_composites(params, workspace.data_dir, folder, composition, settings):
                pairs.write(_format_row(pair_row))
                queries.writelines(map(_format_row, query_rows))
            queries.writelines(map(_format_row, _write_singles(composition.singles, workspace.data_dir, folder)))
    return composition


def _check_place(out: Path, data_dir: Path) -> None:
    place, data = out.resolve(), data_dir.resolve()
    if place.is_relative_to(data) or data.is_relative_to(place):
        raise ConfigError(f"{out}: lies in the data that the set is made from; name a folder beside them")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_composed(out))):
        raise ConfigError(f"{out}: exists already and is no composed set; move it away, or name another folder")


def _is_composed(folder: Path) -> bool:
    try:
        with (folder / PAIRS_FILE).open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and tuple(first) == _PAIR_KEYS


def _write_composites(
    params: DataParams, data_dir: Path, folder: Path, composition: Composition, settings: ComposeSettings
) -> Iterator[tuple[dict[str, object], list[dict[str, object]]]]:
    """Write every picture; yield its row of the pairs, and those of its questions."""
    pictures = PictureFolder(data_dir, params.max_image_pixels)

    def paste(item: tuple[str, Composite]) -> tuple[Box, Box]:
        name, composite = item
        left, right = (pictures.load(side.query.image_path) for side in (composite.left, composite.right))
        picture, boxes = join_photos(left, right, settings.height_px)
        picture.save(folder / name, "JPEG", quality=_JPEG_QUALITY)
        return boxes

    items = list(_name_pictures(composition.composites))
    with track("compose: pictures", len(items)) as advance, ThreadPoolExecutor(NUM_THREADS) as pool:
        for split in SPLITS:
            (folder / _COMPOSITES / split).mkdir(parents=True)
        for batch in split_batches(items, BATCH_SIZE):
            for (name, composite), boxes in zip(batch, pool.map(paste, batch), strict=True):
                yield (
                    _build_pair_row(name, composite, boxes),
                    [_build_query_row(name, composite, asked, boxes) for asked in composite.asked],
                )
                advance(1)


def _name_pictures(composites: Mapping[Split, Sequence[Composite]]) -> Iterator[tuple[str, Composite]]:
    for split, of_split in composites.items():
        for number, composite in enumerate(of_split, 1):
            yield f"{_COMPOSITES}/{split}/{number:06d}.jpg", composite


def _build_pair_row(name: str, composite: Composite, boxes: tuple[Box, Box]) -> dict[str, object]:
    left, right = composite.left.query, composite.right.query
    values = (
        name,
        left.split,
        left.query_id,
        right.query_id,
        boxes[0].as_tuple(),
        boxes[1].as_tuple(),
        [asked.query_id for asked in composite.asked],
    )
    return dict(zip(_PAIR_KEYS, values, strict=True))


def _build_query_row(name: str, composite: Composite, asked: Asked, boxes: tuple[Box, Box]) -> dict[str, object]:
    single = composite.at(asked.side)
    pairing = {} if asked.pairing is None else {"pairing": asked.pairing}
    return {
        "query_id": asked.query_id,
        "split": single.query.split,
        "question": asked.question,
        "image": name,
        "relevant": sorted(single.doc_ids),
        "target_box": boxes[0 if asked.side == "left" else 1].as_tuple(),
        "tags": {**single.query.tags, "scene": "composite", "side": asked.side, **pairing},
    }


def _write_singles(singles: Sequence[Single], data_dir: Path, folder: Path) -> Iterator[dict[str, object]]:
    with track("compose: single photos", len(singles)) as advance:
        for single in singles:
            query = single.query
            row: dict[str, object] = {
                "query_id": query.query_id,
                "split": query.split,
                "question": query.question,
                "image": _take_picture(query.image_path, data_dir, folder),
                "relevant": sorted(single.doc_ids),
                "tags": {**query.tags, "scene": "single"},
            }
            if query.target_box is not None:
                row["target_box"] = query.target_box.as_tuple()
            yield row
            advance(1)


def _write_documents(documents: Iterable[Document], data_dir: Path, folder: Path) -> None:
    with (
        (folder / DOCUMENTS_FILE).open("w", encoding="utf-8") as file,
        track("compose: documents", None) as advance,
    ):
        for document in documents:
            images = [_take_picture(path, data_dir, folder) for path in document.image_paths]
            row = {"doc_id": document.doc_id, "title": document.title, "text": document.text, "images": images}
            file.write(_format_row(row))
            advance(1)


def _take_picture(path: str, data_dir: Path, folder: Path) -> str:
    """Return where a picture of the source lies in the folder: a second name of its file, or a copy on another disk."""
    name = f"{_SOURCE}/{path}"
    source, target = data_dir / path, folder / name
    if target.exists():
        return name
    if not source.is_file():
        raise DataError("is missing; run prepare again", path=source)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    return name


def _format_row(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
