"""The groceries: photos dealt out once, mosaics with exact boxes, honest questions, a recipe that runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from demo.groceries import build_models, dataset
from demo.groceries.catalogue import Catalogue, open_picture, read_catalogue
from demo.groceries.dataset import MAX_GALLERY, pick_gallery, plan_queries, write_dataset
from demo.groceries.mosaics import compose, draw_layout, list_references
from demo.groceries.photo_scenes import draw_photo_scenes, load_photos
from demo.recipes.grounding import GroundingRecipe
from pipeline.cli import app
from pipeline.config import DataParams
from pipeline.errors import DataError
from pipeline.sources.check import check_data

pytestmark = pytest.mark.slow  # trains for a few steps

_REAL = Path(__file__).parents[4] / "shared" / "data" / "groceries"
_GROUPS = ("Apple", "Oat-Milk", "Pear", "Leek", "Juice")
_NUM_PRODUCTS = 8
_NUM_TRAIN, _NUM_TEST = 10, 2


def _colour(number: int, shade: int) -> tuple[int, int, int]:
    return (30 * number, 255 - 30 * number, 100 + 5 * shade)


def _write_photo(path: Path, number: int, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), _colour(number, shade)).save(path)


def _read_colour(path: Path) -> Any:
    return np.asarray(Image.open(path))[0, 0].astype(int)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the published layout: eight products in five groups, a photo is a shade of its product's colour."""
    root: Path = tmp_path_factory.mktemp("groceries")
    classes = ["Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic,Description"]
    rows: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(_NUM_PRODUCTS):
        group = _GROUPS[number % len(_GROUPS)]
        _write_photo(root / f"iconic/{number}.png", number, 20)
        (root / f"iconic/{number}.txt").write_text(f"Product {number} is good.\n")
        classes.append(f"Good-{number},{number},{group},0,/iconic/{number}.png,/iconic/{number}.txt")
        for shade in range(_NUM_TRAIN + _NUM_TEST):
            split = "train" if shade < _NUM_TRAIN else "val"
            name = f"{split}/{number}_{shade}.png"
            _write_photo(root / name, number, shade)
            rows[split].append(f"{name}, {number}, 0")
    (root / "classes.csv").write_text("\n".join(classes) + "\n")
    for split, lines in rows.items():
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def catalogue(folder: Path) -> Catalogue:
    return read_catalogue(folder, 0)


def test_every_photo_is_in_one_share(catalogue: Catalogue) -> None:
    counts = Counter(photo.path for photos in catalogue.photos.values() for photo in photos)
    assert set(counts.values()) == {1}
    assert len(counts) == _NUM_PRODUCTS * (_NUM_TRAIN + _NUM_TEST)
    assert {share: len(photos) for share, photos in catalogue.photos.items()} == {
        "models": 48, "val": 8, "train": 24, "test": 16,
    }  # fmt: skip
    assert all(photo.path.parent.name == "val" for photo in catalogue.photos["test"])


def test_the_seed_deals_the_photos(folder: Path, catalogue: Catalogue) -> None:
    assert read_catalogue(folder, 0) == catalogue
    assert read_catalogue(folder, 1).photos["train"] != catalogue.photos["train"]


def test_groups_are_words(catalogue: Catalogue) -> None:
    assert catalogue.groups == ["apple", "juice", "leek", "oat milk", "pear"]


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        ("classes.csv", "Good,9,Apple,0,/iconic/0.png", r"classes.csv, row 10: needs 6 cells"),
        ("classes.csv", "Good,1,Apple,0,/iconic/0.png,/iconic/0.txt", r"classes.csv, row 10: product 1 is there twice"),
        ("classes.csv", "Good,9,Apple,0,/../x.png,/iconic/0.txt", r"classes.csv, row 10: .* leads out of the folder"),
        ("train.txt", "train/0_0.png, 99, 0", r"train.txt, row 81: needs a photo and the number of a product"),
        ("train.txt", "train/none.png, 1, 0", r"train.txt, row 81: train/none.png: no such file"),
    ],
)
def test_bad_row_is_named(folder: Path, tmp_path: Path, name: str, line: str, complaint: str) -> None:
    for entry in folder.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    text = (folder / name).read_text()
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(text + line + "\n")
    with pytest.raises(DataError, match=complaint):
        read_catalogue(tmp_path, 0)


def test_missing_data_set_is_one_line(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["demo", "groceries", str(tmp_path), "--out", str(tmp_path / "data")])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert "classes.csv: is missing" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_data_that_are_there_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = CliRunner().invoke(app, ["demo", "groceries", str(folder), "--out", str(tmp_path)])
    assert ended.exit_code == 2
    assert "exists already" in ended.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


@given(num_photos=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**32))
def test_a_layout_covers_the_picture_once(num_photos: int, seed: int) -> None:
    layout = draw_layout(num_photos, np.random.default_rng(seed))
    width, height = layout.size_px
    covered = np.zeros((height, width), dtype=int)
    for box in layout.boxes:
        edges = [edge * side for edge, side in zip(box.as_tuple(), (width, height) * 2, strict=True)]
        assert edges == pytest.approx([round(edge) for edge in edges])
        left, top, right, bottom = (round(edge) for edge in edges)
        covered[top:bottom, left:right] += 1
    assert len(layout.boxes) == len(layout.places) == num_photos
    assert (covered == 1).all()


def test_each_photo_lies_in_its_box_and_where_its_place_says(catalogue: Catalogue) -> None:
    photos = [catalogue.photos["train"][3 * number] for number in range(4)]
    layout = draw_layout(4, np.random.default_rng(1))
    pixels = np.asarray(compose([Image.open(photo.path) for photo in photos], layout))
    for position, (photo, box) in enumerate(zip(photos, layout.boxes, strict=True)):
        left, top, right, bottom = (
            round(edge * side) for edge, side in zip(box.as_tuple(), layout.size_px * 2, strict=True)
        )
        assert (pixels[top:bottom, left:right] == _read_colour(photo.path)).all()
        phrases = [r.phrase for r in list_references([p.product for p in photos], layout) if r.thing == position]
        across, down = ("left" if left == 0 else "right"), ("top" if top == 0 else "bottom")
        assert phrases == [f"the {photo.product.group}", f"the product at the {down} {across}"]


def test_every_photo_is_asked_about_alone_and_in_mosaics(catalogue: Catalogue) -> None:
    queries = list(plan_queries(catalogue, 3))
    assert queries == list(plan_queries(catalogue, 3))
    assert len({query.query_id for query in queries}) == len(queries) == 3 * (8 + 24 + 16)
    for query in queries:
        assert set(query.photos) <= set(catalogue.photos[query.split])
        groups = [photo.product.group for photo in query.photos]
        assert len(set(groups)) == len(groups)
        assert query.reference.phrase in query.question
        if query.reference.kind == "group":
            assert query.reference.phrase == f"the {groups[query.target]}"
    asked = Counter((query.photos[query.target].path, len(query.photos)) for query in queries)
    assert set(asked.values()) == {1}


def test_a_document_shows_photos_that_no_query_shows(catalogue: Catalogue, tmp_path: Path) -> None:
    gallery = pick_gallery(catalogue)
    assert list(gallery) == list(catalogue.products)
    asked = {photo.path for query in plan_queries(catalogue, 0) for photo in query.photos}
    for product, photos in gallery.items():
        # Six of a product's ten training photos are the models'.
        assert len({photo.path for photo in photos}) == 6 <= MAX_GALLERY
        assert {photo.product for photo in photos} == {product}
        assert not asked & {photo.path for photo in photos}
    write_dataset(catalogue, 0, tmp_path / "data")
    rows = [json.loads(line) for line in (tmp_path / "data/documents.jsonl").read_text().splitlines()]
    for row, (product, photos) in zip(rows, gallery.items(), strict=True):
        shown = [product.iconic_path, *(photo.path for photo in photos)]
        for name, path in zip(row["images"], shown, strict=True):
            assert np.abs(_read_colour(tmp_path / "data" / name) - _read_colour(path)).max() <= 4  # JPEG


def test_a_product_of_many_photos_shows_the_first_that_were_dealt(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_GALLERY", 2)
    for product, photos in pick_gallery(catalogue).items():
        assert list(photos) == [photo for photo in catalogue.photos["models"] if photo.product == product][:2]


def test_written_data_pass_the_check(catalogue: Catalogue, tmp_path: Path) -> None:
    write_dataset(catalogue, 0, tmp_path / "data")
    findings, _, refusal = check_data(DataParams(), tmp_path / "data")
    assert refusal is None
    assert (findings["num_documents"], findings["num_queries"], findings["num_rejected"]) == (8, 144, 0)
    rows = [json.loads(line) for line in (tmp_path / "data/queries.jsonl").read_text().splitlines()]
    single = next(row for row in rows if row["tags"]["scene"] == "single")
    photo = next(q for q in plan_queries(catalogue, 0) if q.query_id == single["query_id"]).photos[0]
    picture = np.asarray(open_picture(tmp_path / "data" / single["image"])).astype(int)
    assert np.abs(picture - _read_colour(photo.path)).max() <= 4  # JPEG


def test_scenes_point_where_things_lie(catalogue: Catalogue) -> None:
    scenes, _ = draw_photo_scenes(load_photos(catalogue.photos["models"]), 2, 30, 16, lambda _: None)
    for scene in scenes:
        assert sum((t.box.x1 - t.box.x0) * (t.box.y1 - t.box.y0) for t in scene.things) == pytest.approx(1.0)
        for reference in scene.references:
            if reference.kind == "group":
                assert reference.phrase == f"the {scene.things[reference.thing].names[0]}"


def test_the_recipe_runs_and_writes_a_model_that_opens(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_models, "NUM_SCENES", 8)
    monkeypatch.setattr(build_models, "NUM_HELD_OUT", 4)
    lines: list[str] = []
    pointing = GroundingRecipe(num_steps=2, num_scenes_per_step=4, warmup_steps=1)
    build_models.build_policy(catalogue, tmp_path / "llava", 0, lines.append, pointing)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "llava")
    start = AutoModelForImageTextToText.from_pretrained(build_models._BUILTIN / "tiny-llava")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert "no query shows" in (tmp_path / "llava" / "README.md").read_text()
    assert any("held-out" in line for line in lines)


@pytest.mark.skipif(not _REAL.is_dir(), reason="the GroceryStoreDataset does not lie in ../shared/data/groceries")
def test_the_real_catalogue() -> None:
    catalogue = read_catalogue(_REAL, 0)
    assert len(catalogue.products) == 81
    assert len(catalogue.groups) == 43
    assert {share: len(photos) for share, photos in catalogue.photos.items()} == {
        "models": 1448, "val": 264, "train": 928, "test": 296,
    }  # fmt: skip
