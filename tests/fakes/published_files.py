"""Tiny files in the published shapes of E-VQA, InfoSeek and EchoSight; no network."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.sources.formats.evqa import COLUMNS

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
URL = "https://en.wikipedia.org/wiki/"
GREY_HERON = URL + "Grey_heron"
LUJAN = URL + "Basilica_of_Our_Lady_of_Luj%C3%A1n"
HERON_PICTURE = "https://upload.wikimedia.org/wikipedia/commons/a/ab/Grey_heron_%281%29.jpg"


def find_real_rows(name: str) -> Path:
    """Return a file of real rows that lies beside the checkout, or skip the test with the reason."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"real rows are not part of the project: no {path.parent.parent.name}/{path.parent.name}/{name}")
    return path


def evqa_row(**changes: str) -> dict[str, str]:
    """Return a sound E-VQA test row about a landmark."""
    return {
        "question": "Who built this?",
        "answer": "Ramón J. Etcheverry |R. Etcheverry",
        "dataset_image_ids": "abc1234567890def",
        "dataset_name": "landmarks",
        "dataset_category_id": "7",
        "question_type": "automatic",
        "wikipedia_url": LUJAN,
        "wikipedia_title": "Basilica",
        "evidence": "",
        "evidence_section_id": "0",
        "evidence_section_title": "Basilica",
        "encyclopedic_vqa_split": "test",
        "question_original": "Who built the basilica?",
        "wikipedia_url_used_in_train": "False",
        **changes,
    }


def evqa_train_row(**changes: str) -> dict[str, str]:
    """Return a sound E-VQA training row about another landmark."""
    return evqa_row(**{"dataset_image_ids": "7ra1n", "encyclopedic_vqa_split": "train", **changes})


def inaturalist_row(**changes: str) -> dict[str, str]:
    """Return a sound E-VQA test row about a bird."""
    bird = {"dataset_name": "inaturalist", "dataset_image_ids": "2708246|2708247", "wikipedia_url": GREY_HERON}
    return evqa_row(**{**bird, "question": "What does it eat?", **changes})


def echosight_row(**changes: str) -> dict[str, str]:
    """Return a sound row of EchoSight's InfoSeek CSV: unused columns are "0"."""
    unused = dict.fromkeys(("evidence", "evidence_section_id", "evidence_section_title", "dataset_category_id"), "0")
    return evqa_row(
        **{
            **unused,
            "dataset_name": "infoseek",
            "dataset_image_ids": "oven_05023258",
            "question_type": "String",
            "encyclopedic_vqa_split": "0",
            "wikipedia_url_used_in_train": "0",
            "data_id": "infoseek_val_00000001",
            **changes,
        }
    )


def format_csv(rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows as a CSV file with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    """Write rows as a CSV file with a header."""
    path.write_text(format_csv(rows, columns), encoding="utf-8")
    return path


def entry(title: str, *, texts: Sequence[str] = ("Lead.", "More."), images: Sequence[str] = ()) -> dict[str, Any]:
    """Return a knowledge base entry."""
    return {
        "title": title,
        "section_titles": [title, *(f"Section {number}" for number in range(1, len(texts)))],
        "section_texts": list(texts),
        "image_urls": list(images),
        "image_reference_descriptions": ["" for _ in images],
        "image_section_indices": [0 for _ in images],
        "url": "unused",
    }


KNOWLEDGE_BASE = {
    LUJAN: entry("Basilica of Our Lady of Luján", texts=("A basilica.", "", "Built by Etcheverry.")),
    GREY_HERON: entry("Grey heron", images=(HERON_PICTURE, "https://upload.wikimedia.org/gone.jpg")),
    URL + "Nobody_asks": entry("Nobody asks"),
}


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines, packed if the name says so."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def paint(path: Path, shade: int, size: tuple[int, int] = (12, 10)) -> Path:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 9)).save(path)
    return path


def write_evqa(data_dir: Path) -> Path:
    """Write a small sound E-VQA folder: two single-hop test rows, a two-hop row between them, and a training row."""
    images = data_dir / "images"
    paint(images / "landmarks/a/b/c/abc1234567890def.jpg", 1)
    paint(images / "inaturalist/val/00012_heron/x.jpg", 2)
    paint(images / "landmarks/7/r/a/7ra1n.jpg", 4)
    paint(images / "knowledge_base/upload.wikimedia.org/wikipedia/commons/a/ab/Grey_heron_(1).jpg", 3)
    (images / "inaturalist/val_id2name.json").write_text(json.dumps({"2708246": "val/00012_heron/x.jpg", "1": "y"}))
    two_hop = evqa_row(question_type="2_hop", wikipedia_url=f"{LUJAN}|{GREY_HERON}")
    write_csv(data_dir / "test.csv", [evqa_row(), two_hop, inaturalist_row()])
    write_csv(data_dir / "train.csv", [evqa_train_row()])
    (data_dir / "encyclopedic_kb_wiki.json").write_text(json.dumps(KNOWLEDGE_BASE))
    return data_dir


def write_infoseek(data_dir: Path) -> Path:
    """Write a small sound InfoSeek folder: three val questions, a training one, a repeated entity, an infobox."""
    rows = [
        ("infoseek_val_00000000", "oven_04963180", "val_unseen_question", "Q178185"),
        ("infoseek_val_00000001", "oven_05023258", "val_unseen_entity", "Q2"),
        ("infoseek_val_00000002", "oven_05023259", "val_unseen_entity", "Q2"),
    ]
    suffixes = (".jpg", ".JPEG", ".png")
    for shade, ((_, image_id, _, _), suffix) in enumerate(zip(rows, suffixes, strict=True)):
        source = paint(data_dir / f"{shade}{suffix.lower()}", shade)
        target = data_dir / "images" / "oven_images" / image_id[5:7] / f"{image_id}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    paint(data_dir / "images/wikipedia_images_full/Q178/Q178185.jpg", 9)
    write_jsonl(
        data_dir / "infoseek_val.jsonl",
        [
            {
                "data_id": data_id,
                "image_id": image_id,
                "question": "Which place?",
                "answer": ["China"],
                "answer_eval": [{"wikidata": 1.0, "range": [0.9, 1.1]}] if number else {"range": [0.9, 1.1]},
                "data_split": split,
            }
            for number, (data_id, image_id, split, _) in enumerate(rows)
        ],
    )
    write_jsonl(
        data_dir / "infoseek_val_withkb.jsonl",
        [{"data_id": row[0], "entity_id": row[3], "entity_text": "Thing"} for row in rows],
    )
    write_infoseek_train(data_dir, "oven_00000007")
    paint(data_dir / "images/oven_images/00/oven_00000007.png", 8)
    write_jsonl(
        data_dir / "Wiki6M_ver_1_0.jsonl.gz",
        [
            {
                "wikidata_id": "Q178185",
                "wikipedia_title": "Heat engine",
                "wikipedia_content": "Long content.",
                "wikipedia_summary": "Short.",
                "wikipedia_image_url": "https://upload.wikimedia.org/x.jpg",
            },
            {"wikidata_id": "Q2", "wikipedia_title": "Earth", "wikipedia_content": "Third planet."},
            {"wikidata_id": "Q2", "wikipedia_title": "Earth", "wikipedia_content": "Again."},
        ],
    )
    return data_dir


def write_infoseek_train(data_dir: Path, *image_ids: str) -> None:
    """Write training questions about these pictures, all of entity Q2."""
    ids = [(f"infoseek_train_{number:08d}", name) for number, name in enumerate(image_ids)]
    rows = [{"data_id": data_id, "image_id": name, "question": "What?", "data_split": "train"} for data_id, name in ids]
    write_jsonl(data_dir / "infoseek_train.jsonl", rows)
    entities = [{"data_id": data_id, "entity_id": "Q2", "entity_text": "Earth"} for data_id, _ in ids]
    write_jsonl(data_dir / "infoseek_train_withkb.jsonl", entities)
