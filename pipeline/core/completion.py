"""The policy's answer as text: one canonical form for writing, one strict grammar for reading.

    REGION   <tool_call>
             {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [x0, y0, x1, y1]}}
             </tool_call>
    FULL     NO_CROP_NEEDED

Coordinates are those of the model's `Frame`. White space around either form and inside the JSON is free;
anything else is `Malformed` and is never read as FULL.

Generation stops where an action is complete (docs/method.md, D35): `cut_after_action` drops what a sampler may have
drawn beyond it.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.core.boxes import Frame, box_to_frame, frame_to_box
from pipeline.types import Crop, Decision, KeepFull, Malformed

REGION_OPENING = "<tool_call>"
REGION_CLOSING = "</tool_call>"
FULL_ANSWER = "NO_CROP_NEEDED"
TOOL_NAME = "image_zoom_in_tool"


def format_decision(decision: Decision, frame: Frame) -> str:
    """Return the canonical text of a decision, coordinates rounded to integers of the frame.

    Raises:
        ValueError: the decision is Malformed and so has no canonical text.
    """
    match decision:
        case KeepFull():
            return FULL_ANSWER
        case Crop(box):
            call = {"name": TOOL_NAME, "arguments": {"bbox_2d": list(box_to_frame(box, frame))}}
            return f"{REGION_OPENING}\n{json.dumps(call)}\n{REGION_CLOSING}"
        case Malformed(reason):
            raise ValueError(f"a malformed decision has no text: {reason}")


def parse_completion(text: str, frame: Frame) -> Decision:
    """Return the decision that the text states; text that states none is Malformed. Never raises.

    A box is clipped to the frame; one that is then under one unit wide or high, or not finite, is Malformed.
    """
    answer = text.strip()
    if not answer:
        return Malformed("empty answer")
    if answer == FULL_ANSWER:
        return KeepFull()
    if not answer.startswith(REGION_OPENING):
        return Malformed(f"opens neither with {REGION_OPENING} nor with {FULL_ANSWER} alone")
    body = answer.removeprefix(REGION_OPENING)
    if not body.endswith(REGION_CLOSING):
        return Malformed(f"does not end with {REGION_CLOSING}")
    return _parse_call(body.removesuffix(REGION_CLOSING), frame)


def find_action_end(text: str) -> int | None:
    """Return where the action that the text opens with is complete; None as long as it is not.

    A crop ends with the first `</tool_call>`, whatever the call says; FULL ends with its last letter.
    """
    answer = text.lstrip()
    lead = len(text) - len(answer)
    if answer.startswith(FULL_ANSWER):
        return lead + len(FULL_ANSWER)
    closing = answer.find(REGION_CLOSING) if answer.startswith(REGION_OPENING) else -1
    return None if closing < 0 else lead + closing + len(REGION_CLOSING)


def cut_after_action(text: str) -> str:
    """Return the text up to the end of its action; text without a complete action stays whole."""
    return text[: find_action_end(text)]


def _parse_call(body: str, frame: Frame) -> Decision:
    try:
        call: Any = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: no JSON, or an int with too many digits
        return Malformed("tool call is not JSON")
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        return Malformed("tool call must have exactly name and arguments")
    if call["name"] != TOOL_NAME:
        return Malformed(f"tool is not {TOOL_NAME}")
    arguments = call["arguments"]
    if not isinstance(arguments, dict) or arguments.keys() != {"bbox_2d"}:
        return Malformed("arguments must have exactly bbox_2d")
    coords = arguments["bbox_2d"]
    if not isinstance(coords, list) or len(coords) != 4 or not all(_is_number(value) for value in coords):
        return Malformed("bbox_2d must be four numbers")
    box = frame_to_box(coords, frame)
    return box if isinstance(box, Malformed) else Crop(box)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
