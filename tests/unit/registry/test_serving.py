"""What the served model takes as a picture: content alone, whatever it is asked for."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.registry.serving import _check_question, _load_image

_MAX_PIXELS = 10_000


def _write_png(size_px: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size_px, "teal").save(buffer, format="PNG")
    return buffer.getvalue()


def test_bytes_base64_and_data_urls_are_one_picture() -> None:
    png = _write_png()
    text = base64.b64encode(png).decode()
    for source in (png, text, f"data:image/png;base64,{text}"):
        assert _load_image(source, 1, _MAX_PIXELS).size == (40, 30)


# Without its dot a name may be sound base64: then what it spells is no picture.
@pytest.mark.parametrize("name", ["secret.png", "abcd"])
@pytest.mark.parametrize("shape", ["{}", "file://{}", "data:image/png;base64,{}", "data:image/png,{}"])
def test_paths_are_never_opened(name: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(_write_png())
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name)):
        with pytest.raises(DataError, match=r"^model input, row 3: `image` ") as refused:
            _load_image(shape.format(path), 3, _MAX_PIXELS)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (_write_png((200, 200)), "200 x 200 pixels"),
        (b"not a picture", "is no picture"),
        ("", "is no picture"),
        (None, "base64|is no picture"),
        (float("nan"), "base64|is no picture"),
        ("é", "base64"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_row(source: object, reason: str) -> None:
    with pytest.raises(DataError, match=f"^model input, row 2: `image` .*({reason})") as refused:
        _load_image(source, 2, _MAX_PIXELS)
    assert "/tmp" not in str(refused.value)


def test_a_blank_or_endless_question_is_refused_by_its_row() -> None:
    assert _check_question("What?", 1, 5) == "What?"
    with pytest.raises(DataError, match="model input, row 5: `question` is blank"):
        _check_question(" \n", 5, 5)
    with pytest.raises(DataError, match=r"row 2: `question` has 6 characters, data\.max_question_chars = 5"):
        _check_question("Whats?", 2, 5)
    with pytest.raises(DataError, match="row 1: `question` is blank"):
        _check_question("\u200b", 1, 5)
    with pytest.raises(DataError, match=r"row 1: `question` holds the control character U\+001B at place 2"):
        _check_question("a\x1bb", 1, 5)
    assert _check_question("a\r\nb", 1, 5) == "a\nb"
