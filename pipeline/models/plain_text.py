"""What users write reaches a model as plain characters: it can neither end a turn nor stand for a picture.

A tokenizer turns the strings of its special tokens into those tokens wherever they stand, and a processor counts
`<image>` and widens it. So each such string in a question or a document gets a space behind its first character:
`<image>` is read as `< image>`, `<|im_end|>` as `< |im_end|>`. Text without such strings stays as it is, bit by bit.

Transformers has a way of its own (`apply_chat_template(sanitize_control_tokens=True)`), which keeps even the space out.
It works where template and tokenizer are called as one, which TRL's trainers do not always do, and processors of
Idefics3 and SmolVLM count pictures before it is asked. The text itself goes one way through all of them, and vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

Untyped = Any
"""A tokenizer or processor of transformers, or one adapted as such."""

_PICTURE_STRINGS: Final = ("image_token", "video_token", "audio_token", "fake_image_token", "global_image_token")
"""Attributes of processors that name strings to count or widen; most are special tokens, but need not be."""


class PlainText:
    """Breaks special strings in user text.

    Args:
        markers: the strings. One of a single character, or with white space, is left alone: ordinary text has those.
    """

    def __init__(self, markers: Iterable[str]) -> None:
        breakable = {marker for marker in markers if len(marker) > 1 and not re.search(r"\s", marker)}
        self.markers: Final = tuple(sorted(breakable, key=lambda marker: (-len(marker), marker)))
        # Tokenizers of the CLIP family lower their input before they look for special tokens.
        self._pattern: Final = re.compile("|".join(map(re.escape, self.markers)) or "(?!)", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """Return the text with a space behind the first character of each special string, and otherwise as it is."""
        # Strings may overlap: what was hidden by one is found in the next round. Each round parts two characters for
        # good, so the rounds come to an end.
        while (broken := self._pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)) != text:
            text = broken
        return text


def list_markers(tokenizer: Untyped) -> set[str]:
    """Return the strings that a tokenizer reads as special tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return {*(token.content for token in added if token.special), *tokenizer.all_special_tokens}


def list_picture_strings(processor: Untyped) -> set[str]:
    """Return the strings that a processor counts, or widens into as many tokens as a picture has."""
    named = (getattr(processor, name, None) for name in _PICTURE_STRINGS)
    return {string for string in named if isinstance(string, str)}
