import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SearchParams
from pipeline.core.region_search import build_grid, choose_label, draw_neighbours, refine_boxes, weigh_boxes
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


@given(box=_boxes(), seed=st.integers(0, 2**32), count=st.integers(0, 20))
def test_neighbours_lie_near_their_box_and_in_the_picture(box, seed, count):
    neighbours = draw_neighbours([box], np.random.default_rng(seed), count)
    assert len(neighbours) == count
    width, height = box.x1 - box.x0, box.y1 - box.y0
    for near in neighbours:  # a Box lies in the picture and has an area, or it could not be built
        outwards = [
            *((box.x0 - near.x0) / width, (near.x1 - box.x1) / width),
            *((box.y0 - near.y0) / height, (near.y1 - box.y1) / height),
        ]
        hair = 1e-15 / min(width, height)
        assert all(-0.1 - hair <= move <= 0.4 + hair for move in outwards)


def test_sides_of_a_neighbour_move_by_themselves_over_the_whole_room():
    box = Box(0.4, 0.3, 0.6, 0.7)
    neighbours = draw_neighbours([box], np.random.default_rng(1), 4000)
    moves = np.array([np.abs(np.subtract(near.as_tuple(), box.as_tuple())) for near in neighbours])
    moves /= [0.2, 0.4, 0.2, 0.4]
    signs = np.array([np.subtract(near.as_tuple(), box.as_tuple()) for near in neighbours]) * [-1, -1, 1, 1] > 0
    outwards = np.where(signs, moves, -moves)
    assert outwards.mean(axis=0) == pytest.approx(0.15, abs=0.01)
    assert outwards.min(axis=0) == pytest.approx(-0.1, abs=0.01)
    assert outwards.max(axis=0) == pytest.approx(0.4, abs=0.01)
    off_diagonal = np.corrcoef(outwards.T)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.06


@given(num_boxes=st.integers(1, 12), count=st.integers(0, 40))
def test_neighbours_are_dealt_out_evenly(num_boxes, count):
    # Boxes so far apart that a neighbour shows whose it is.
    boxes = [Box(number / 12 + 0.03, 0.4, number / 12 + 0.05, 0.6) for number in range(num_boxes)]
    neighbours = draw_neighbours(boxes, np.random.default_rng(3), count)
    shares = Counter(int((near.x0 + near.x1) / 2 * 12) for near in neighbours)
    assert sum(shares.values()) == count
    assert max(shares.values(), default=0) - min((shares[number] for number in range(num_boxes)), default=0) <= 1


def test_without_a_box_there_are_no_neighbours():
    assert draw_neighbours([], np.random.default_rng(1), 5) == []


_REWARDS = st.lists(st.floats(-1.0, 5.0), min_size=1, max_size=30)


@given(rewards=_REWARDS, temperature=st.floats(1e-3, 10.0))
def test_shares_are_a_distribution_that_follows_the_rewards(rewards, temperature):
    shares = weigh_boxes(rewards, temperature)
    assert sum(shares) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in shares)
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    assert all(shares[low] <= shares[high] for low, high in pairwise(order))
    assert np.dot(shares, rewards) >= np.mean(rewards) - 1e-9
    shifted = weigh_boxes([reward + 2.0 for reward in rewards], temperature)
    assert shifted == pytest.approx(shares, rel=1e-6, abs=1e-12)


@given(rewards=_REWARDS, temperature=st.floats(0.05, 10.0))
def test_temperature_is_the_difference_that_makes_a_box_e_times_as_frequent(rewards, temperature):
    richer = weigh_boxes([rewards[0], rewards[0] + temperature], temperature)
    assert richer[1] / richer[0] == pytest.approx(math.e)
    cooler = weigh_boxes(rewards, temperature / 2)
    assert np.dot(cooler, rewards) >= np.dot(weigh_boxes(rewards, temperature), rewards) - 1e-9


@given(rewards=_REWARDS, other=st.data(), temperature=st.floats(0.05, 5.0))
def test_no_other_shares_trade_reward_against_evenness_better(rewards, other, temperature):
    def objective(shares):
        entropy = -sum(share * math.log(share) for share in shares if share > 0.0)
        return (
            float(np.dot(shares, rewards)) + temperature * entropy
        )  # minus temperature KL to even shares, plus a constant

    raw = other.draw(st.lists(st.floats(0.01, 1.0), min_size=len(rewards), max_size=len(rewards)))
    assert objective(weigh_boxes(rewards, temperature)) >= objective([value / sum(raw) for value in raw]) - 1e-9


def test_no_temperature_is_too_low_to_be_computed():
    assert weigh_boxes([5.0, -1.0, 5.0], 1e-300) == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("rewards", "temperature"), [([], 1.0), ([math.nan], 1.0), ([math.inf, 0.0], 1.0), ([1.0], 0.0), ([1.0], math.nan)]
)
def test_what_cannot_be_weighed_is_refused(rewards, temperature):
    with pytest.raises(ValueError, match=r"rewards|temperature"):
        weigh_boxes(rewards, temperature)
