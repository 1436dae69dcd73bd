"""One sees the architecture in the folders: a room holds few files, and every room says what it is for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

import pytest

from tests.import_closure import CHECKOUT

MOST_FILES: Final = 12
ROOMS: Final = sorted(
    {
        path.parent
        for root in ("pipeline", "flows", "demo", "benchmarks", "tests")
        for path in (CHECKOUT / root).rglob("*.py")
    }
)


PACKAGES: Final = [room for room in ROOMS if (room / "__init__.py").is_file()]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(CHECKOUT).as_posix())
def test_no_room_is_crowded(room: Path) -> None:
    files = [path for path in room.iterdir() if path.is_file() and path.suffix != ".pyc"]
    assert len(files) <= MOST_FILES, "give a part of them a room of its own"


@pytest.mark.parametrize(
    "room", [room for room in ROOMS if (room / "__init__.py").is_file()], ids=lambda room: room.name
)
def test_every_package_says_what_it_is_for(room: Path) -> None:
    assert ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
