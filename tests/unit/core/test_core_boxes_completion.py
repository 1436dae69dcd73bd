import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.boxes import Frame, box_to_frame, box_to_px, compute_iou, frame_to_box
from pipeline.core.completion import (
    FULL_ANSWER,
    REGION_CLOSING,
    REGION_OPENING,
    cut_after_action,
    find_action_end,
    format_decision,
    parse_completion,
)
from pipeline.core.prompts import build_prompt
from pipeline.types import Box, Crop, KeepFull, Malformed

sides = st.one_of(st.integers(1, 5000).map(float), st.floats(1.0, 5000.0))
frames = st.builds(Frame, sides, sides)
TINY = Frame(28, 28)


def spans(low: float, high: float):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted).filter(lambda span: span[0] < span[1])


boxes = st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), spans(0.0, 1.0), spans(0.0, 1.0))


@st.composite
def integer_boxes(draw):
    frame = draw(frames)
    coords = []
    for side in (frame.width, frame.height):
        low = draw(st.integers(0, math.floor(side) - 1))
        coords.append((low, draw(st.integers(low + 1, math.floor(side)))))
    return frame, (coords[0][0], coords[1][0], coords[0][1], coords[1][1])


def call(coords_json: str, name: str = "image_zoom_in_tool") -> str:
    body = f'{{"name": "{name}", "arguments": {{"bbox_2d": {coords_json}}}}}'
    return f"{REGION_OPENING}\n{body}\n{REGION_CLOSING}"


@settings(deadline=None)
@given(integer_boxes())
def test_integers_of_a_frame_round_trip_exactly(case):
    frame, coords = case
    box = frame_to_box(coords, frame)
    assert isinstance(box, Box)
    assert box_to_frame(box, frame) == coords


@settings(deadline=None)
@given(boxes, frames)
def test_box_to_frame_is_inside_and_at_least_one_unit(box, frame):
    x0, y0, x1, y1 = box_to_frame(box, frame)
    assert 0 <= x0 < x1 <= frame.width
    assert 0 <= y0 < y1 <= frame.height


@settings(deadline=None)
@given(boxes, st.integers(1, 5000), st.integers(1, 5000))
def test_box_to_frame_moves_no_edge_by_more_than_a_unit(box, width, height):
    exact = (box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
    for got, want in zip(box_to_frame(box, Frame(width, height)), exact, strict=True):
        assert abs(got - want) <= 1.0 + 1e-6


def test_sliver_beyond_the_last_whole_unit_becomes_that_unit():
    assert box_to_frame(Box(0.97, 0.0, 1.0, 1.0), Frame(10.4, 10.0)) == (9, 0, 10, 10)


@settings(deadline=None)
@given(boxes, st.integers(1, 9000), st.integers(1, 9000))
def test_box_to_px_is_inside_the_image(box, width_px, height_px):
    left, top, right, bottom = box_to_px(box, width_px, height_px)
    assert 0 <= left < right <= width_px
    assert 0 <= top < bottom <= height_px


def test_box_to_px_by_hand():
    assert box_to_px(Box(0.1, 0.25, 0.5, 1.0), 200, 80) == (20, 20, 100, 80)


def test_a_sliver_becomes_the_unit_that_holds_its_centre():
    assert box_to_frame(Box(0.36, 0.0, 0.39, 1.0), Frame(10, 10)) == (3, 0, 4, 10)


def test_frame_to_box_uses_width_for_x_and_height_for_y_and_clips():
    assert frame_to_box((-5, 10, 50, 90), Frame(100, 40)) == Box(0.0, 0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    "coords",
    [
        (5, 5, 5, 9),
        (9, 5, 5, 9),
        (28, 0, 40, 9),
        (-9, 0, 0, 9),
        (math.nan, 0, 5, 9),
        (0, 0, math.inf, 9),
        (0, 0, 10**400, 9),
        (0.0, 0.0, 5e-324, 9.0),
        (27.5, 0, 40, 9),
    ],
)
def test_frame_to_box_has_no_box_where_nothing_is_left(coords):
    assert isinstance(frame_to_box(coords, TINY), Malformed)


@settings(deadline=None)
@given(frames, spans(0.0, 1.0), spans(0.0, 1.0))
def test_fractions_are_no_box_in_any_frame(frame, across, down):
    decision = parse_completion(call(json.dumps([across[0], down[0], across[1], down[1]])), frame)
    if list(across) == list(down) == [0.0, 1.0]:
        return  # whole numbers: the first unit
    assert isinstance(decision, Malformed)


def test_a_box_of_one_unit_is_a_crop():
    assert parse_completion(call("[3, 4, 4, 5]"), TINY) == Crop(Box(3 / 28, 4 / 28, 4 / 28, 5 / 28))
    assert isinstance(parse_completion(call("[0.5, 0.5, 1.75, 1.5]"), TINY), Crop)


@pytest.mark.parametrize("side", [0.0, 0.5, -3.0, math.nan, math.inf, 2.0**25])
def test_frame_refuses_senseless_sides(side):
    with pytest.raises(ValueError, match="sides"):
        Frame(side, 10)
    with pytest.raises(ValueError, match="sides"):
        Frame(10, side)


def test_frame_to_box_refuses_another_number_of_coordinates():
    with pytest.raises(ValueError, match="4 coordinates"):
        frame_to_box((1, 2, 3), TINY)


def test_iou_by_hand():
    assert compute_iou(Box(0.0, 0.0, 0.5, 1.0), Box(0.25, 0.0, 0.75, 1.0)) == pytest.approx(1 / 3)
    assert compute_iou(Box(0.0, 0.0, 0.5, 0.5), Box(0.5, 0.0, 1.0, 0.5)) == 0.0


@settings(deadline=None)
@given(boxes, boxes)
def test_iou_is_symmetric_and_within_0_and_1(a, b):
    assert compute_iou(a, b) == compute_iou(b, a)
    assert 0.0 <= compute_iou(a, b) <= 1.0


@settings(deadline=None)
@given(spans(0.0, 1.0).filter(lambda span: span[1] - span[0] > 1e-6))
def test_iou_with_itself_is_1(span):
    box = Box(span[0], span[0], span[1], span[1])
    assert compute_iou(box, box) == pytest.approx(1.0)


def test_canonical_texts():
    assert format_decision(KeepFull(), TINY) == "NO_CROP_NEEDED"
    assert format_decision(Crop(Box(3 / 28, 4 / 28, 10 / 28, 12 / 28)), TINY) == (
        '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [3, 4, 10, 12]}}\n</tool_call>'
    )


def test_malformed_has_no_text():
    with pytest.raises(ValueError, match="no text"):
        format_decision(Malformed("x"), TINY)


@settings(deadline=None)
@given(boxes, frames)
def test_format_then_parse_keeps_the_integers(box, frame):
    text = format_decision(Crop(box), frame)
    parsed = parse_completion(text, frame)
    assert isinstance(parsed, Crop)
    assert box_to_frame(parsed.box, frame) == box_to_frame(box, frame)
    assert format_decision(parsed, frame) == text


@settings(deadline=None)
@given(frames)
def test_full_round_trips(frame):
    assert parse_completion(format_decision(KeepFull(), frame), frame) == KeepFull()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.text(), frames)
def test_parser_never_raises_on_any_text(text, frame):
    decision = parse_completion(text, frame)
    assert isinstance(decision, Malformed) == (text.strip() != FULL_ANSWER)


@settings(deadline=None)
@given(st.text(), frames)
def test_parser_never_raises_inside_a_tool_call(body, frame):
    assert isinstance(parse_completion(f"{REGION_OPENING}{body}{REGION_CLOSING}", frame), Malformed)


@settings(deadline=None)
@given(json_values, frames)
def test_parser_never_raises_on_any_json_as_box(value, frame):
    decision = parse_completion(call(json.dumps(value)), frame)
    if isinstance(decision, Crop):
        assert isinstance(value, list)
        assert len(value) == 4
    else:
        assert isinstance(decision, Malformed)


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(), st.integers()), min_size=4, max_size=4), frames)
def test_parser_gives_the_box_that_the_numbers_name(coords, frame):
    box = frame_to_box(coords, frame)
    decision = parse_completion(call(json.dumps(coords)), frame)
    assert decision == (box if isinstance(box, Malformed) else Crop(box))


@pytest.mark.parametrize("space", ["", " ", "\n\n", "\t\r\n"])
def test_surrounding_white_space_is_fine(space):
    assert parse_completion(f"{space}{FULL_ANSWER}{space}", TINY) == KeepFull()
    assert parse_completion(f"{space}{call('[0, 0, 14, 28]')}{space}", TINY) == Crop(Box(0.0, 0.0, 0.5, 1.0))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("NO_CROP_NEEDED.", "opens neither"),
        ("no_crop_needed", "opens neither"),
        ("I think " + FULL_ANSWER, "opens neither"),
        (FULL_ANSWER * 2, "opens neither"),
        ("Sure: " + call("[1, 2, 3, 4]"), "opens neither"),
        (REGION_OPENING, "does not end"),
        (call("[1, 2, 3, 4]") + " done", "does not end"),
        (call("[1, 2, 3, 4]").removesuffix(REGION_CLOSING), "does not end"),
        (call("[1, 2, 3, 4]") * 2, "not JSON"),
        (call("[1, 2, 3"), "not JSON"),
        (call("[" * 100_000), "not JSON"),
        (call("[1, 2, 3, " + "9" * 5000 + "]"), "not JSON"),
        (f"{REGION_OPENING}[1, 2, 3, 4]{REGION_CLOSING}", "exactly name and arguments"),
        (f'{REGION_OPENING}{{"name": "image_zoom_in_tool"}}{REGION_CLOSING}', "exactly name and arguments"),
        (call("[1, 2, 3, 4]", name="rotate"), "tool is not"),
        (call('[1, 2, 3, 4], "label": "bird"'), "exactly bbox_2d"),
        (call("[1, 2, 3]"), "four numbers"),
        (call("[1, 2, 3, true]"), "four numbers"),
        (call('[1, 2, 3, "4"]'), "four numbers"),
        (call("null"), "four numbers"),
        (call("[3, 2, 3, 4]"), "box is empty"),
        (call("[1, 2, NaN, 4]"), "not finite"),
        (call("[1, 2, 1e999, 4]"), "not finite"),
        (call("[1, 2, 3, " + "9" * 400 + "]"), "not finite"),
        (call("[0.1, 0.2, 0.5, 0.6]"), "under one unit of its frame"),
        (call("[3, 4, 10, 4.9]"), "under one unit of its frame"),
    ],
)
def test_anything_else_is_malformed_with_its_reason(text, reason):
    decision = parse_completion(text, TINY)
    assert isinstance(decision, Malformed)
    assert reason in decision.reason


actions = st.one_of(st.just(FULL_ANSWER), boxes.map(lambda box: format_decision(Crop(box), TINY)))


@given(st.sampled_from(["", " ", "\n\t"]), actions, st.text())
def test_whatever_follows_an_action_is_cut(lead, action, tail):
    assert cut_after_action(lead + action + tail) == lead + action


@given(actions, st.data())
def test_an_action_is_not_over_before_its_last_sign(action, data):
    completion = action[: data.draw(st.integers(0, len(action) - 1))]
    assert find_action_end(completion) is None
    assert cut_after_action(completion) == completion


@given(st.text())
def test_cutting_changes_no_answer_that_was_well_formed(text):
    for completion in (text, f"{REGION_OPENING}{text}{REGION_CLOSING}"):
        before = parse_completion(completion, TINY)
        assert completion.startswith(cut_after_action(completion))
        assert isinstance(before, Malformed) or parse_completion(cut_after_action(completion), TINY) == before


def test_a_mention_of_an_action_ends_nothing():
    assert find_action_end(f"I would say {FULL_ANSWER}") is None
    assert find_action_end(f"{REGION_CLOSING} {FULL_ANSWER}") is None
    assert cut_after_action(f"{REGION_OPENING}?{REGION_CLOSING}{FULL_ANSWER}") == f"{REGION_OPENING}?{REGION_CLOSING}"


def test_question_style_is_the_question_alone():
    assert build_prompt("  Which bird is this? ", "question") == "Which bird is this?"


def test_instruction_names_both_answers_and_ends_with_the_question():
    prompt = build_prompt("Which bird is this?", "instruct")
    opening, _, closing = call("[x1, y1, x2, y2]").split("\n")
    assert call("[x1, y1, x2, y2]") in prompt
    assert opening in prompt
    assert closing in prompt
    assert f"\n{FULL_ANSWER}\n" in prompt
    assert prompt.endswith("Question: Which bird is this?")


def test_prompt_refuses_no_question_and_unknown_style():
    with pytest.raises(ValueError, match="empty"):
        build_prompt(" ", "question")
    with pytest.raises(ValueError, match="unknown prompt style"):
        build_prompt("What?", "poem")
