"""What a text may hold: control characters do harm on terminals and pages, and not every character can be seen."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# C0, DEL and C1, without tab and line feed.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# White space, marks without a letter, control and format characters (zero width, byte order mark, direction).
_INVISIBLE_CATEGORIES: Final = frozenset({"Zs", "Zl", "Zp", "Mn", "Mc", "Me", "Cc", "Cf", "Cs"})
_NOT_ON_A_LINE: Final = frozenset({"Cc", "Zl", "Zp"})
# Letters and a symbol that are blank all the same: Hangul fillers and the empty braille cell.
_BLANK_SIGNS: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def clean_text(text: str) -> str:
    r"""Return a text with `\n` for every line end and a space for every other control character but tabs.

    >>> clean_text("one\r\ntwo\x00three\tfour\x85")
    'one\ntwo three\tfour '
    """
    return _CONTROL.sub(" ", unify_line_ends(text))


def unify_line_ends(text: str) -> str:
    r"""Return a text with `\n` in place of `\r\n` and of `\r`."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def find_control(text: str) -> str | None:
    r"""Return which control character a text holds first, None if there is none; tab and `\n` are no such.

    >>> find_control("a\x1bb")
    'the control character U+001B at place 2'
    """
    found = _CONTROL.search(text)
    return None if found is None else f"the control character U+{ord(found[0]):04X} at place {found.start() + 1}"


def is_one_line(text: str) -> bool:
    """Whether a text holds no control character, tab or line end: what a label, a name or a path may be."""
    return text.isprintable() or not any(unicodedata.category(sign) in _NOT_ON_A_LINE for sign in text)


def is_blank(text: str) -> bool:
    r"""Whether nothing of a text can be seen.

    >>> is_blank("\u200b \ufeff"), is_blank("\u200bא")
    (True, False)
    """
    return all(sign in _BLANK_SIGNS or unicodedata.category(sign) in _INVISIBLE_CATEGORIES for sign in text)


def find_question_fault(question: str, max_chars: int) -> tuple[str, str] | None:
    r"""Return why a question cannot be asked: the reason's short name, and what it does; None if it can be.

    Args:
        question: with `\n` for every line end.
        max_chars: longest question that is taken, since a batch is padded to its longest.

    >>> find_question_fault("What?", 4)
    ('question_too_long', 'has 5 characters, data.max_question_chars = 4')
    """
    if is_blank(question):
        return "empty_question", "is blank"
    if len(question) > max_chars:
        return "question_too_long", f"has {len(question)} characters, data.max_question_chars = {max_chars}"
    control = find_control(question)
    return None if control is None else ("invalid_row", f"holds {control}")
