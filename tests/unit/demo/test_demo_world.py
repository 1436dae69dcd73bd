"""The demo world: reproducible pictures, honest splits, unambiguous questions, tight boxes."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from demo.drawing import emblems
from demo.drawing.entities import describe_look
from demo.drawing.materialise import materialise
from demo.drawing.scenes import draw_close_up, draw_scene, lay_out_clutter
from demo.drawing.silhouettes import KINDS
from demo.drawing.world import (
    Entity,
    QuerySpec,
    World,
    build_entities,
    build_world,
    draw_gallery_picture,
    draw_query,
    list_population,
    list_references,
)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(5, num_entities=60, num_train=150, num_val=40, num_test=60)


def _hash_pictures(world: World) -> str:
    digest = hashlib.sha256()
    for query in world.queries[:4]:
        digest.update(draw_query(query).image.tobytes())
    digest.update(draw_gallery_picture(world.documents[0].gallery[0]).image.tobytes())
    return digest.hexdigest()


def _centre(spec: QuerySpec, index: int) -> tuple[float, float]:
    x0, y0, x1, y1 = spec.placements[index].box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _longer_side_px(spec: QuerySpec, index: int) -> float:
    x0, y0, x1, y1 = spec.placements[index].box
    return max((x1 - x0) * spec.size_px[0], (y1 - y0) * spec.size_px[1])


def test_same_seed_gives_same_world_and_pixels(world: World) -> None:
    again = build_world(5, num_entities=60, num_train=150, num_val=40, num_test=60)
    assert again == world
    assert _hash_pictures(again) == _hash_pictures(world)


def test_other_seed_gives_other_world_and_pixels(world: World) -> None:
    other = build_world(6, num_entities=60, num_train=150, num_val=40, num_test=60)
    assert other.entities != world.entities
    assert _hash_pictures(other) != _hash_pictures(world)


def test_populations_are_disjoint_halves() -> None:
    demo, studio = set(list_population("demo")), set(list_population("studio"))
    assert len(demo) == len(studio) == 2160
    assert not demo & studio
    assert {entity.look for entity in build_entities(3, 500, "demo")} <= demo
    assert {entity.look for entity in build_entities(3, 500, "studio")} <= studio


def test_too_many_entities_are_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        build_entities(0, 2161, "demo")


def test_looks_titles_and_ids_are_unique_and_articles_tell_the_look(world: World) -> None:
    count = len(world.entities)
    assert len({e.look for e in world.entities}) == len({e.title for e in world.entities}) == count
    assert len({e.entity_id for e in world.entities}) == count
    for entity in world.entities:
        assert f"It shows {describe_look(entity.look)}." in entity.article
        assert entity.colour != entity.accent
        assert 4 <= entity.article.count(".") <= 6


def test_unseen_entities_are_never_train_targets(world: World) -> None:
    asked = {q.target.entity_id for q in world.queries if q.split == "train"}
    for query in world.queries:
        assert query.is_seen == (query.target.entity_id in asked)
    test = [q for q in world.queries if q.split == "test"]
    assert sum(not q.is_seen for q in test) == len(test) // 2
    unseen_val = {q.target.entity_id for q in world.queries if q.split == "val" and not q.is_seen}
    assert unseen_val.isdisjoint(q.target.entity_id for q in test if not q.is_seen)


def test_every_document_has_two_pictures(world: World) -> None:
    assert all(len(document.gallery) >= 2 for document in world.documents)


def test_questions_never_name_a_title(world: World) -> None:
    for query in world.queries:
        assert query.phrase in query.question
        assert query.target.title.lower() not in query.question.lower()
        assert query.target.title.split()[-1].lower() not in query.question.lower()


def test_colour_references_name_one_thing(world: World) -> None:
    for query in world.queries:
        named = [e for e in query.entities if f"the {e.colour} {e.kind}" == query.phrase]
        assert named == ([query.target] if query.reference == "colour" else [])


def test_size_references_hold_by_a_clear_margin(world: World) -> None:
    queries = [q for q in world.queries if q.reference == "size"]
    assert {q.phrase for q in queries} == {"the largest emblem", "the smallest emblem"}
    for query in queries:
        others = [_longer_side_px(query, i) for i in range(1, len(query.entities))]
        if query.phrase == "the largest emblem":
            assert _longer_side_px(query, 0) >= 1.3 * max(others)
        else:
            assert 1.3 * _longer_side_px(query, 0) <= min(others)


def test_place_references_hold_by_a_clear_margin(world: World) -> None:
    for query in (q for q in world.queries if q.reference == "place"):
        (x, y), others = _centre(query, 0), [_centre(query, i) for i in range(1, len(query.entities))]
        edges = {
            "far left": min(a for a, _ in others) - x,
            "far right": x - max(a for a, _ in others),
            "very top": min(b for _, b in others) - y,
            "very bottom": y - max(b for _, b in others),
        }
        edge = [gap for name, gap in edges.items() if name in query.phrase]
        if edge:
            assert edge[0] >= 0.12
            continue
        corner = (float("right" in query.phrase), float("bottom" in query.phrase))
        assert (x > 0.5) == bool(corner[0])
        assert (y > 0.5) == bool(corner[1])
        assert min(math.dist(o, corner) for o in others) - math.dist((x, y), corner) >= 0.15


def test_scene_references_agree_with_the_plan(world: World) -> None:
    for query in world.queries[:30]:
        assert (0, query.reference, query.phrase) in list_references(draw_query(query))


def test_things_lie_inside_and_apart_and_look_different(world: World) -> None:
    for query in world.queries:
        boxes = [place.box for place in query.placements]
        for x0, y0, x1, y1 in boxes:
            assert 0.0 <= x0 < x1 <= 1.0
            assert 0.0 <= y0 < y1 <= 1.0
        for i, a in enumerate(boxes):
            assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[:i])
        assert len({(e.kind, e.colour) for e in query.entities}) == len(query.entities)


def test_two_things_of_one_kind_and_colour_are_refused() -> None:
    look = emblems.Look("moth", "red", "dots", "white")
    with pytest.raises(ValueError, match="share kind and colour"):
        lay_out_clutter([look, emblems.Look("moth", "red", "bar", "blue")], np.random.default_rng(0), (112, 112))


@pytest.mark.parametrize("kind", KINDS)
def test_accent_stays_below_its_bound_on_drawn_pixels(kind: str) -> None:
    for pattern in emblems.PATTERNS:
        black, white = (_draw_on_grey(emblems.Look(kind, "red", pattern, accent)) for accent in ("black", "white"))
        accent = np.asarray(ImageChops.difference(black, white)).max(axis=2) > 100
        red = np.asarray(black).astype(np.int64)
        silhouette = accent | (red[:, :, 0] - red[:, :, 1] > 40)
        assert 0.04 < accent.sum() / silhouette.sum() <= emblems.MAX_ACCENT_SHARE
        assert 0.04 < emblems.measure_accent_share(kind, pattern) <= emblems.MAX_ACCENT_SHARE


def _draw_on_grey(look: emblems.Look) -> Image.Image:
    canvas = Image.new("RGB", (220, 220), (128, 128, 128))
    emblems.paste_emblem(canvas, look, (110.0, 110.0), 90.0, 0.1)
    return canvas


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_tight_around_the_drawn_silhouette(kind: str) -> None:
    entity = Entity("e0001", kind, "red", "dots", "white", "Order of Test", "")
    for seed, side_px in ((0, 224), (1, 224), (2, 112)):
        scene = draw_close_up(entity, np.random.default_rng(seed), (side_px, side_px))
        pixels = np.asarray(scene.image).astype(np.int64)
        # The red body and its rim; grounds and shadows are muted.
        shown = pixels[:, :, 0] - pixels[:, :, 1] > 45
        ys, xs = np.nonzero(shown)
        drawn = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        box_px = [value * side_px for value in scene.things[0].box]
        assert drawn == pytest.approx(box_px, abs=2.0)


def test_scene_is_drawn_at_any_size(world: World) -> None:
    first = world.entities[0]
    second = next(e for e in world.entities if (e.kind, e.colour) != (first.kind, first.colour))
    scene = draw_scene((first, second), np.random.default_rng(0), (112, 96))
    assert scene.image.size == (112, 96)
    assert scene.image.mode == "RGB"


def test_materialise_writes_the_own_data_format_whole(tmp_path: Path) -> None:
    world = build_world(1, num_entities=12, num_train=6, num_val=2, num_test=4)
    data_dir = tmp_path / "data"
    materialise(world, data_dir)
    materialise(world, data_dir)  # a second run replaces the first
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    documents = [json.loads(line) for line in (data_dir / "documents.jsonl").read_text("utf-8").splitlines()]
    queries = [json.loads(line) for line in (data_dir / "queries.jsonl").read_text("utf-8").splitlines()]
    assert len(documents) == 12
    assert len(queries) == 12
    pictures = [name for row in documents for name in row["images"]] + [row["image"] for row in queries]
    assert len(set(pictures)) == len(list(data_dir.rglob("*.jpg")))
    assert all((data_dir / name).is_file() for name in pictures)
    assert {row["relevant"][0] for row in queries} <= {row["doc_id"] for row in documents}
    assert set(queries[0]["tags"]) == {"reference", "seen", "scene"}
