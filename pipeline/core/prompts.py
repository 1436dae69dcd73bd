"""What the policy is asked. The candidates are never part of it, so one decision serves any list of them."""

from __future__ import annotations

from typing import Literal

from pipeline.core.completion import FULL_ANSWER, REGION_CLOSING, REGION_OPENING, TOOL_NAME

_INSTRUCTION = f"""The image will be used to look up encyclopedia entries that answer the question below.
Find the thing the question asks about. If it fills most of the image, or its surroundings help to tell \
what it is, keep the whole image. If other things around it would mislead the search, choose one box that \
holds it whole with little else.

To keep the whole image, reply with this line alone:
{FULL_ANSWER}
To choose a box, reply with this tool call alone, where x1, y1 is the box's top left corner and x2, y2 \
its bottom right corner, as integers in the coordinates you use for this image:
{REGION_OPENING}
{{"name": "{TOOL_NAME}", "arguments": {{"bbox_2d": [x1, y1, x2, y2]}}}}
{REGION_CLOSING}

Question: """


def build_prompt(question: str, style: Literal["question", "instruct"]) -> str:
    """Return the user's text for one question.

    Args:
        question: the query's question; white space around it is dropped.
        style: `question` alone (tiny models, which are trained to answer in the format), or `instruct`, which
            adds the task and the format in words (the paper's setting).

    Raises:
        ValueError: the question is empty or the style unknown.
    """
    text = question.strip()
    if not text:
        raise ValueError("the question is empty")
    if style == "question":
        return text
    if style == "instruct":
        return _INSTRUCTION + text
    raise ValueError(f"unknown prompt style {style!r}")
