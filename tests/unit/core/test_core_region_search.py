import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SearchParams
from pipeline.core.region_search import RESHAPINGS, Reshaping, build_grid, choose_label, refine_boxes
from pipeline.types import Box

DEFAULTS = SearchParams()
A, B, C = Box(0.0, 0.0, 0.3, 0.3), Box(0.2, 0.2, 0.5, 0.5), Box(0.5, 0.5, 1.0, 1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 0.95), min_size=1, max_size=3), st.floats(0.1, 1.0))
def test_every_scale_covers_the_image_in_even_steps(scales, stride):
    boxes = build_grid(scales, stride)
    assert len(set(boxes)) == len(boxes)
    for scale in scales:
        of_scale = [box for box in boxes if math.isclose(box.x1 - box.x0, scale, abs_tol=1e-9)]
        xs, ys = sorted({box.x0 for box in of_scale}), sorted({box.y0 for box in of_scale})
        assert xs == ys
        assert xs[0] == 0.0
        assert max(box.x1 for box in of_scale) == max(box.y1 for box in of_scale) == 1.0
        steps = [after - before for before, after in pairwise(xs)]
        assert max(steps) <= stride * scale + 1e-6
        assert all(math.isclose(box.y1 - box.y0, scale, abs_tol=1e-9) for box in of_scale)


def test_default_grid_has_the_counted_boxes():
    # places per axis: 1 + ceil((1 - s) / (0.5 s)) = 6, 4 for s = 0.3, 0.45
    assert len(build_grid(DEFAULTS.scales, DEFAULTS.stride)) == 36 + 16


def test_grid_by_hand():
    assert build_grid([0.5], 1.0) == (
        Box(0.0, 0.0, 0.5, 0.5),
        Box(0.5, 0.0, 1.0, 0.5),
        Box(0.0, 0.5, 0.5, 1.0),
        Box(0.5, 0.5, 1.0, 1.0),
    )


def test_every_search_knob_changes_a_result():
    grid = build_grid(DEFAULTS.scales, DEFAULTS.stride)
    assert build_grid((0.3, 0.4), DEFAULTS.stride) != grid
    assert build_grid(DEFAULTS.scales, 0.35) != grid
    gain_of = {"boxes": [A], "rewards": [0.1], "full_reward": 0.0}
    assert choose_label("q", min_gain=DEFAULTS.min_gain, **gain_of).box == A
    assert choose_label("q", min_gain=0.2, **gain_of).box is None


def test_repeated_scales_add_nothing():
    assert build_grid([0.5, 0.5], 0.5) == build_grid([0.5], 0.5)


@pytest.mark.parametrize(
    ("scales", "stride"),
    [([], 0.5), ([0.0], 0.5), ([1.0], 0.5), ([math.nan], 0.5), ([0.5], 0.0), ([0.5], math.inf)],
)
def test_grid_refuses_values_out_of_range(scales, stride):
    with pytest.raises(ValueError, match=r"scales|stride"):
        build_grid(scales, stride)


spans = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(sorted).filter(lambda span: span[1] - span[0] > 0.01)


@settings(deadline=None)
@given(spans, spans)
def test_neighbours_are_near_distinct_and_exclude_the_box(x, y):
    box = Box(x[0], y[0], x[1], y[1])
    neighbours = refine_boxes(box)
    assert neighbours
    assert box not in neighbours
    assert len(set(neighbours)) == len(neighbours)
    width, height = x[1] - x[0], y[1] - y[0]
    for near in neighbours:  # a valid Box lies inside the image by itself
        assert max(abs(near.x0 - box.x0), abs(near.x1 - box.x1)) <= width / 4 + 1e-9
        assert max(abs(near.y0 - box.y0), abs(near.y1 - box.y1)) <= height / 4 + 1e-9


def test_inner_box_has_all_twenty_neighbours():
    neighbours = refine_boxes(Box(0.375, 0.375, 0.625, 0.625))
    assert len(neighbours) == 20
    assert Box(0.4375, 0.375, 0.6875, 0.625) in neighbours  # right by a quarter
    assert Box(0.34375, 0.34375, 0.65625, 0.65625) in neighbours  # a quarter larger
    assert Box(0.390625, 0.375, 0.609375, 0.625) in neighbours  # an eighth narrower


def test_box_at_the_edge_keeps_its_size_when_moved():
    assert Box(0.0, 0.0, 0.25, 0.25) not in refine_boxes(Box(0.0, 0.0, 0.5, 0.5))
    assert Box(0.125, 0.0, 0.625, 0.5) in refine_boxes(Box(0.0, 0.0, 0.5, 0.5))


def test_refining_a_hair_thin_box_gives_only_boxes():
    thin = Box(0.5, 0.0, math.nextafter(0.5, 1.0), 1.0)
    assert all(isinstance(near, Box) for near in refine_boxes(thin))
    assert refine_boxes(thin)


def test_label_is_the_best_crop_and_its_gain():
    label = choose_label("q", [A, B, C], [0.1, 0.9, 0.4], 0.05, 0.2)
    assert (label.query_id, label.box, label.gain) == ("q", B, pytest.approx(0.7))


def test_label_is_full_when_the_gain_is_too_small_and_keeps_the_gain():
    label = choose_label("q", [A, B], [0.9, 0.8], 0.05, 1.0)
    assert (label.box, label.gain) == (None, pytest.approx(-0.1))


def test_gain_equal_to_the_least_gain_is_enough():
    assert choose_label("q", [A], [0.75], 0.25, 0.5).box == A


def test_of_equal_crops_the_first_wins():
    assert choose_label("q", [B, A, C], [0.5, 0.5, 0.5], 0.0, 0.0).box == B


@pytest.mark.parametrize(
    ("boxes", "rewards", "full_reward"),
    [([], [], 0.0), ([A], [0.1, 0.2], 0.0), ([A], [math.nan], 0.0), ([A], [1.0], math.inf)],
)
def test_label_refuses_what_cannot_be_compared(boxes, rewards, full_reward):
    with pytest.raises(ValueError, match="q9"):
        choose_label("q9", boxes, rewards, 0.05, full_reward)


# ---------------------------------------------------------------------------- near what a policy says

_UNIT = st.floats(0.0, 1.0)


@st.composite
def _boxes(draw):
    x0, y0, x1, y1 = draw(st.tuples(_UNIT, _UNIT, _UNIT, _UNIT).filter(lambda c: c[0] < c[2] and c[1] < c[3]))
    return Box(x0, y0, x1, y1)


_SIDES = st.integers(1, 4000)


@given(box=_boxes(), width_px=_SIDES, height_px=_SIDES, reshaping=st.sampled_from(RESHAPINGS))
def test_a_reshaped_box_holds_the_box_and_stays_in_the_picture(box, width_px, height_px, reshaping):
    crop = reshaping.apply(box, width_px, height_px)  # a Box lies in the picture, or it could not be built
    hair = 1e-12
    assert crop.x0 <= box.x0 + hair
    assert crop.y0 <= box.y0 + hair
    assert crop.x1 >= box.x1 - hair
    assert crop.y1 >= box.y1 - hair


def test_what_is_square_is_so_in_pixels():
    crop = Reshaping(0.0, is_square=True).apply(Box(0.4, 0.3, 0.6, 0.7), 200, 100)
    assert crop.as_tuple() == pytest.approx((0.4, 0.3, 0.6, 0.7))  # 40 x 40 px already
    crop = Reshaping(0.1, is_square=True).apply(Box(0.4, 0.3, 0.6, 0.7), 100, 100)
    assert crop.as_tuple() == pytest.approx((0.26, 0.26, 0.74, 0.74))


def test_a_margin_is_of_the_boxs_own_sides():
    crop = Reshaping(0.5, is_square=False).apply(Box(0.4, 0.4, 0.5, 0.6), 100, 100)
    assert crop.as_tuple() == pytest.approx((0.35, 0.3, 0.55, 0.7))


def test_the_first_reshaping_leaves_a_box_as_it_is():
    box = Box(0.1, 0.2, 0.5, 0.4)
    assert RESHAPINGS[0].apply(box, 30, 40) == box
    assert len(set(RESHAPINGS)) == len(RESHAPINGS)
