"""A picture that is encoded anew or resized in another split is known again; pictures that differ are not confused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageOps

from demo.drawing.world import build_world, draw_query
from pipeline.config import DataParams, Params
from pipeline.core.inputs.lookalikes import NO_STRUCTURE, find_lookalikes
from pipeline.files import store
from pipeline.runs.tracking import null_run
from pipeline.sources.judging.fingerprint import compute_fingerprint
from pipeline.stages import prepare
from pipeline.types import Reject
from pipeline.workspace import Workspace
from tests.fakes.published_files import write_infoseek, write_infoseek_train

SHARED_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def draw_scene(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draw a few shapes on a graded ground; another number draws others."""
    image = ImageOps.colorize(Image.linear_gradient("L").resize(size), (40, 90, 60), (210, 220, 190))
    pen = ImageDraw.Draw(image)
    for shape in range(5):
        x, y = (97 * number + 61 * shape) % 240, (53 * number + 83 * shape) % 160
        colour = ((80 * shape + 30 * number) % 256, (50 * number) % 256, (70 * shape) % 256)
        pen.ellipse((x, y, x + 70, y + 60), fill=colour)
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return Image.open(content).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": lambda image: encode(image, "JPEG", quality=90),
    "poor jpeg": lambda image: encode(image, "JPEG", quality=30),
    "webp": lambda image: encode(image, "WEBP", quality=80),
    "gif": lambda image: encode(image, "GIF"),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image: image.resize((image.width * 2, image.height * 2)),
    "square": lambda image: image.resize((224, 224)),
    "half as jpeg": lambda image: encode(image.resize((160, 120)), "JPEG", quality=75),
}


def look_alike(one: Image.Image, other: Image.Image) -> bool:
    return bool(find_lookalikes([compute_fingerprint(one), compute_fingerprint(other)], ["train", "test"]))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_picture_is_known_again(change: Callable[[Image.Image], Image.Image]) -> None:
    for number in range(12):
        scene = draw_scene(number)
        assert look_alike(scene, change(scene))


def test_other_scenes_and_other_colours_are_other_pictures() -> None:
    scenes = [draw_scene(number) for number in range(12)]
    scenes += [ImageOps.invert(scenes[0]), ImageOps.mirror(scenes[0]), Image.merge("RGB", scenes[0].split()[::-1])]
    for place, one in enumerate(scenes):
        assert not any(look_alike(one, other) for other in scenes[place + 1 :])


def test_plain_pictures_are_told_apart_by_colour_alone() -> None:
    grey, blue = (Image.new("RGB", (64, 48), colour) for colour in ((128, 128, 128), (60, 80, 120)))
    assert compute_fingerprint(grey).structure == NO_STRUCTURE
    assert look_alike(grey, encode(grey.resize((200, 90)), "JPEG"))
    assert look_alike(encode(blue, "JPEG"), encode(encode(blue, "JPEG"), "PNG"))
    assert not look_alike(grey, blue)
    assert not look_alike(grey, Image.new("RGB", (64, 48), (128, 128, 129)))


def test_no_two_queries_of_a_demo_world_look_alike() -> None:
    queries = build_world(5, num_entities=24, num_train=60, num_val=20, num_test=40).queries
    prints = [compute_fingerprint(draw_query(query).image) for query in queries]
    assert find_lookalikes(prints, [query.split for query in queries]) == []


def test_no_shop_photo_of_one_split_looks_like_one_of_another() -> None:
    folder = SHARED_DATA / "groceries"
    if not folder.is_dir():
        pytest.skip("the photos are not part of the project: no groceries/ beside the checkout")
    splits: list[str] = []
    prints = []
    for split in ("train", "val"):
        rows = (folder / f"{split}.txt").read_text(encoding="utf-8").splitlines()[::5]
        for row in rows:
            with Image.open(folder / row.split(",")[0].strip()) as image:
                prints.append(compute_fingerprint(image.convert("RGB")))
            splits.append(split)
    assert find_lookalikes(prints, splits) == []


class Folder:
    """A data folder of own data, one query a picture."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.at(root)
        (self.workspace.data_dir / "images").mkdir(parents=True)
        self._rows: list[dict[str, Any]] = []

    def ask(self, split: str, image: Image.Image, name: str, **options: Any) -> None:
        image.save(self.workspace.data_dir / "images" / name, **options)
        self.ask_about(split, name)

    def ask_about(self, split: str, name: str) -> None:
        query_id = f"q{len(self._rows)}"
        row = {"query_id": query_id, "split": split, "question": "What?", "image": f"images/{name}", "relevant": ["d"]}
        self._rows.append(row)

    def prepare(self) -> list[Reject]:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        (self.workspace.data_dir / "queries.jsonl").write_text(lines, encoding="utf-8")
        document = {"doc_id": "d", "title": "T", "text": "x", "images": []}
        (self.workspace.data_dir / "documents.jsonl").write_text(json.dumps(document), encoding="utf-8")
        prepare.run(Params(data=DataParams(max_reject_rate=1.0)), self.workspace, null_run())
        return store.load_rejects(self.workspace.tables_dir / "rejects.parquet")

    def list_paths(self) -> list[str]:
        return [query.image_path for query in store.load_queries(self.workspace.tables_dir / "queries.parquet")]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_picture_encoded_anew_in_another_split_gives_way_like_the_same_bytes(folder: Folder) -> None:
    folder.ask("train", draw_scene(1), "a.jpg")
    folder.ask("test", draw_scene(1).resize((200, 150)), "b.png")
    folder.ask("test", draw_scene(2), "c.png")
    (reject,) = folder.prepare()
    assert (reject.source_id, reject.reason, reject.detail) == (
        "queries.jsonl:2",
        "split_lookalike",
        "test image looks the same as that of queries.jsonl:1 in train",
    )
    validation = store.read_json(folder.workspace.tables_dir / "validation.json")
    assert validation["rejects"] == {"split_lookalike": 1}
    failed = {row["expectation"]: row["rows"] for row in validation["as_read"] if not row["success"]}
    (rows,) = failed.values()
    assert "no_lookalike_in_another_split" in next(iter(failed))
    assert rows == ["queries.jsonl:1", "queries.jsonl:2"]
    assert all(row["success"] for row in validation["as_kept"])


def test_same_bytes_are_still_called_so_and_a_rejected_query_claims_no_look(folder: Folder) -> None:
    folder.ask("train", draw_scene(1), "a.png")
    folder.ask("test", draw_scene(1), "same.png")
    folder.ask("val", draw_scene(1), "b.jpg")
    folder.ask("test", draw_scene(3), "c.png")
    reasons = {reject.source_id: reject.reason for reject in folder.prepare()}
    assert reasons == {"queries.jsonl:2": "split_leak", "queries.jsonl:3": "split_lookalike"}


def test_lookalikes_inside_a_split_stay(folder: Folder) -> None:
    folder.ask("train", draw_scene(1), "a.jpg")
    folder.ask("train", draw_scene(1).resize((200, 150)), "b.png")
    folder.ask("test", draw_scene(2), "c.png")
    assert folder.prepare() == []


def test_pictures_of_the_same_bytes_get_one_path(folder: Folder) -> None:
    folder.ask("train", draw_scene(1), "a.png")
    folder.ask("train", draw_scene(1), "copy.png")
    folder.ask("train", draw_scene(2), "other.png")
    folder.ask_about("train", "a.png")
    folder.ask("test", draw_scene(3), "last.png")
    assert folder.prepare() == []
    assert folder.list_paths()[:-1] == ["images/a.png", "images/a.png", "images/other.png", "images/a.png"]


def test_a_published_training_question_gives_way_to_a_test_question_whose_picture_it_has(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path)
    workspace.data_dir.mkdir()
    write_infoseek(workspace.data_dir)
    pictures = workspace.data_dir / "images/oven_images"
    draw_scene(1).save(pictures / "04/oven_04963180.jpg")
    draw_scene(1).resize((160, 120)).save(pictures / "00/oven_00000001.png")
    write_infoseek_train(workspace.data_dir, "oven_00000001", "oven_00000007")
    figures = prepare.run(Params(data=DataParams(source="infoseek")), workspace, null_run())
    reasons = {row.source_id: row.reason for row in store.load_rejects(workspace.tables_dir / "rejects.parquet")}
    assert reasons["infoseek_train.jsonl:1"] == "split_lookalike"
    assert (figures["num_dropped"], figures["num_rejected"]) == (2, 0)
