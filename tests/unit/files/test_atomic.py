"""Old or new, whole: after a kill between any two calls, beside other writers, on file systems without exchange."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline.files import atomic
from pipeline.files.atomic import replace_dir, replace_file, sweep

Write = Callable[[Path], None]


def _replace_folder(place: Path) -> None:
    with replace_dir(place) as fresh:
        for name in ("a", "b"):
            (fresh / name).write_text("new")


def _replace_text(place: Path) -> None:
    with replace_file(place) as partial:
        partial.write_text("new")


def _read(place: Path) -> dict[str, str]:
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.exists() else []
    return {file.name: file.read_text() for file in files}


def _make_old(place: Path, write: Write) -> dict[str, str]:
    if write is _replace_folder:
        place.mkdir()
        for name in ("a", "c"):
            (place / name).write_text("old")
    else:
        place.write_text("old")
    return _read(place)


def _die_at(step: int, write: Write, place: Path) -> bool:
    """Write in a child that dies, as by SIGKILL, before its nth step: a call of the system or a line of ours."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = step

    def count(_frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line" or (event == "c_call" and argument.__module__ in ("posix", "fcntl", "_io")):
            left -= 1
        if left < 0:
            os._exit(9)
        return count

    try:
        sys.setprofile(count)
        sys.settrace(lambda frame, *_: count if frame.f_code.co_filename == atomic.__file__ else None)
        write(place)
    finally:
        os._exit(0)


def _kill_everywhere(write: Write, place: Path) -> Iterator[int]:
    step = 0
    while _die_at(step, write, place):
        yield step
        step += 1


def _cannot_exchange(name: str, *_arguments: int | bytes) -> int:
    return errno.EINVAL if name == "renameat2" else 0


@pytest.mark.slow  # a child for each call
@pytest.mark.parametrize("write", [_replace_folder, _replace_text])
def test_a_kill_between_any_two_calls_leaves_the_old_or_the_new_whole(write: Write, tmp_path: Path) -> None:
    place = tmp_path / "x"
    old = _make_old(place, write)
    new = {"a": "new", "b": "new"} if write is _replace_folder else {"x": "new"}
    seen = []
    for _ in _kill_everywhere(write, place):
        seen.append(_read(place))
        assert seen[-1] in (old, new)
        sweep(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert len(seen) > 30
    assert seen[0] == old
    assert seen[-1] == new


@pytest.mark.slow
def test_without_exchange_the_next_start_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_call", _cannot_exchange)
    place = tmp_path / "x"
    old, new = _make_old(place, _replace_folder), {"a": "new", "b": "new"}
    found = []
    for _ in _kill_everywhere(_replace_folder, place):
        between = not place.exists()
        sweep(tmp_path)
        found.append((between, _read(place)))
        assert found[-1][1] in (old, new)
        assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (True, old) in found
    assert found[-1] == (False, new)


def test_the_next_writer_of_the_folder_sweeps_too(tmp_path: Path) -> None:
    assert _die_at(45, _replace_folder, tmp_path / "x")
    assert len(list(tmp_path.glob(".x.*.partial"))) == 1
    _replace_text(tmp_path / "y")
    assert [entry.name for entry in tmp_path.iterdir()] == ["y"]


@pytest.mark.parametrize("ending", [0, signal.SIGKILL])
def test_what_a_living_writer_makes_is_not_swept(ending: int, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        with replace_dir(tmp_path / "x") as fresh:
            (fresh / "a").write_text("new")
            os.write(write_end, b"!")
            signal.pause() if ending else signal.sigtimedwait([signal.SIGUSR1], 0.3)
        os._exit(0)
    os.read(read_end, 1)
    sweep(tmp_path)
    assert len(list(tmp_path.glob(".x.*.partial/new/a"))) == 1
    if ending:
        os.kill(child, ending)
    os.waitpid(child, 0)
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if ending else ["x"])
    os.close(read_end)
    os.close(write_end)


def test_names_that_only_look_alike_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / ".x.abcdefgh.partial").touch()  # a file: not ours
    (tmp_path / "x.abcdefgh.partial").mkdir()
    before = sorted(tmp_path.iterdir())
    sweep(tmp_path)
    sweep(tmp_path / "missing")
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_is_replaced_and_what_it_names_is_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "x").symlink_to("elsewhere")
    _replace_folder(tmp_path / "x")
    assert _read(tmp_path / "x") == {"a": "new", "b": "new"}
    assert (tmp_path / "elsewhere" / "mine").exists()


def test_files_reach_the_disk_before_they_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real_call, real_flush = atomic._call, atomic._flush
    monkeypatch.setattr(atomic, "_call", lambda name, *rest: (done.append(name), real_call(name, *rest))[1])
    monkeypatch.setattr(atomic, "_flush", lambda path: (done.append(path.name), real_flush(path))[1])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    _replace_folder(tmp_path / "x")
    assert done == ["syncfs", "renameat2", tmp_path.name]
    done.clear()
    _replace_text(tmp_path / "y")
    assert done == ["y", tmp_path.name]
