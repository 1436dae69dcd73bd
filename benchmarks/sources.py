"""Memory and speed of prepare on knowledge bases of published shape and size.

`python -m benchmarks.sources` writes an E-VQA knowledge base (one JSON object) and a Wiki6M file (gz) with a million
entries each, runs prepare on either in a process of its own, prints peak resident memory and speed, by the clock and
by CPU time, as JSON, and removes the files. EchoSight's files have E-VQA's shape and take its path. Above 1.5 GB the
exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from pipeline.config import Params
from pipeline.runs.tracking import null_run
from pipeline.sources.formats.evqa import COLUMNS
from pipeline.stages import prepare
from pipeline.workspace import Workspace

MAX_RESIDENT_GB: Final = 1.5
NUM_QUESTIONS: Final = 1000
SENTENCE: Final = "The species was first described from a specimen that a traveller had brought home. "


def main() -> int:
    """Run the benchmark and print one JSON object per source."""
    parser = argparse.ArgumentParser(description="Peak memory of prepare on generated knowledge bases.")
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries of each knowledge base")
    parser.add_argument("--source", choices=sorted(WRITERS), action="append", help="one source instead of both")
    options = parser.parse_args()
    exceeded = False
    for source in options.source or sorted(WRITERS):
        with tempfile.TemporaryDirectory(prefix="region-r1-bench-") as folder:
            WRITERS[source](Path(folder) / "data", options.entries)
            size_gb = sum(path.stat().st_size for path in Path(folder, "data").iterdir() if path.is_file()) / 1e9
            figures = _measure(source, Path(folder))
        exceeded |= figures["peak_resident_gb"] > MAX_RESIDENT_GB
        sys.stdout.write(json.dumps({"source": source, "size_gb": round(size_gb, 3), **figures}) + "\n")
    return int(exceeded)


def _measure(source: str, root: Path) -> dict[str, Any]:
    # A fresh process, so that nothing but prepare counts.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures: dict[str, Any] = pool.apply(_prepare, (source, root))
    return figures


def _prepare(source: str, root: Path) -> dict[str, Any]:
    params = Params.model_validate({"data": {"source": source, "val_share": 0.0}})
    started, cpu_started = time.monotonic(), time.process_time()
    figures = prepare.run(params, Workspace.at(root), null_run())
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
    return {
        "num_documents": figures["num_documents"],
        "num_queries": figures["num_queries"],
        "peak_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "seconds": round(seconds, 1),
        "entries_per_s": round(figures["num_documents"] / seconds),
        "entries_per_cpu_s": round(figures["num_documents"] / cpu_seconds),
    }


def _write_evqa(data_dir: Path, num_entries: int) -> None:
    _paint(data_dir / "images/landmarks/a/b/c/abc.jpg", "black")
    _paint(data_dir / "images/landmarks/d/e/f/def.jpg", "white")
    step = num_entries // NUM_QUESTIONS
    _write_csv(data_dir / "test.csv", [_question(number * step) for number in range(NUM_QUESTIONS)])
    train = {"dataset_image_ids": "def", "encyclopedic_vqa_split": "train"}
    _write_csv(data_dir / "train.csv", [_question(0) | train])
    with (data_dir / "encyclopedic_kb_wiki.json").open("w", encoding="utf-8") as file:
        for number, entry in enumerate(_entries(num_entries)):
            file.write(("{" if number == 0 else ", ") + f"{json.dumps(_url(number))}: {json.dumps(entry)}")
        file.write("}")


def _write_infoseek(data_dir: Path, num_entries: int) -> None:
    _paint(data_dir / "images/oven_images/01/oven_01000000.jpg", "black")
    _paint(data_dir / "images/oven_images/02/oven_02000000.jpg", "white")
    step = num_entries // NUM_QUESTIONS
    entities = [f"Q{number * step + 1}" for number in range(NUM_QUESTIONS)]
    _write_infoseek_split(data_dir, "val", "val_unseen_entity", "oven_01000000", entities)
    _write_infoseek_split(data_dir, "train", "train", "oven_02000000", entities[:1])
    with gzip.open(data_dir / "Wiki6M_ver_1_0.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as packed:
        for number in range(num_entries):
            row = {"wikidata_id": f"Q{number + 1}", "wikipedia_title": f"Thing {number}"}
            packed.write(json.dumps({**row, "wikipedia_content": SENTENCE * (8 + number % 9)}) + "\n")


def _write_infoseek_split(folder: Path, name: str, data_split: str, image_id: str, entities: Sequence[str]) -> None:
    ids = [f"infoseek_{name}_{number:08d}" for number in range(len(entities))]
    with (folder / f"infoseek_{name}.jsonl").open("w", encoding="utf-8") as file:
        for data_id in ids:
            row = {"data_id": data_id, "image_id": image_id, "question": "Where?", "data_split": data_split}
            file.write(json.dumps(row) + "\n")
    with (folder / f"infoseek_{name}_withkb.jsonl").open("w", encoding="utf-8") as file:
        for data_id, entity_id in zip(ids, entities, strict=True):
            file.write(json.dumps({"data_id": data_id, "entity_id": entity_id}) + "\n")


def _write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), colour).save(path)


def _entries(num_entries: int) -> Iterator[dict[str, Any]]:
    for number in range(num_entries):
        titles = [f"Thing {number}", "Description", "History"]
        images = [f"https://upload.wikimedia.org/wikipedia/commons/{number}/{view}.jpg" for view in range(3)]
        yield {
            "title": titles[0],
            "section_titles": titles,
            "section_texts": [f"Thing {number}. " + SENTENCE * (2 + (number + part) % 7) for part in range(3)],
            "image_urls": images,
            "image_reference_descriptions": ["A picture."] * 3,
            "image_section_indices": [0, 1, 2],
            "url": _url(number),
        }


def _question(number: int) -> dict[str, str]:
    return {
        **dict.fromkeys(COLUMNS, ""),
        "question": "Who described it?",
        "dataset_image_ids": "abc",
        "dataset_name": "landmarks",
        "question_type": "automatic",
        "wikipedia_url": _url(number),
        "encyclopedic_vqa_split": "test",
        "wikipedia_url_used_in_train": "False",
    }


def _url(number: int) -> str:
    return f"https://en.wikipedia.org/wiki/Some_thing_of_ordinary_length_{number}"


WRITERS: Final[dict[str, Callable[[Path, int], None]]] = {"evqa": _write_evqa, "infoseek": _write_infoseek}

if __name__ == "__main__":
    sys.exit(main())
