"""A disk that refuses is one line with path and reason, in every library's own words; nothing is left half-written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline import cli
from pipeline.disk_faults import explain, find_disk_fault
from pipeline.errors import DataError, WriteError
from pipeline.files import store
from pipeline.process.environment import run_to_exit_code
from pipeline.types import Qrel

NUMBERS = np.random.default_rng(0).random((20_000, 8)).astype(np.float32)
MANY_QRELS = [Qrel(query_id=f"query {number:x} {number**5:x}", doc_id=str(number**7)) for number in range(20_000)]
Write = Callable[[Path], object]


def _write_index(path: Path) -> None:
    index = faiss.IndexFlatIP(NUMBERS.shape[1])
    index.add(NUMBERS)
    faiss.write_index(index, os.fspath(path))


def _write_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.execute("create table t (x)")
        connection.execute("insert into t values (?)", (NUMBERS.tobytes(),))
        connection.commit()
    finally:
        connection.close()


def _copy_tree(path: Path) -> None:
    source = path.parents[3] / "source"
    shutil.copytree(source, path)


WRITERS: dict[str, Write] = {
    "text": lambda path: path.write_text("x" * NUMBERS.nbytes),
    "numpy": lambda path: np.save(path, NUMBERS),
    "mapped": lambda path: store.create_vectors(path, NUMBERS.shape),
    "parquet": lambda path: store.save_qrels(path, MANY_QRELS),
    "safetensors": lambda path: save_file({"numbers": torch.from_numpy(NUMBERS)}, path),
    "torch": lambda path: torch.save(NUMBERS, path),
    "faiss": _write_index,
    "picture": lambda path: Image.effect_noise((500, 500), 90).save(path, "PNG"),
    "sqlite": _write_database,
    "copied folder": _copy_tree,
}


@contextmanager
def _limited(what: int, limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _refuse(writer: str, folder: Path) -> WriteError:
    (folder.parent / "source").mkdir()
    (folder.parent / "source" / "n.npy").write_bytes(NUMBERS.tobytes())
    place = folder / "out"
    place.mkdir()
    (place / "old").touch()

    def write() -> None:
        with store.replace_dir(place) as fresh:
            WRITERS[writer](fresh / "big.npy")

    with pytest.raises(WriteError) as caught:
        if os.path.ismount(folder):
            write()
        else:
            with _limited(resource.RLIMIT_FSIZE, 60_000):
                write()
    assert [entry.name for entry in place.iterdir()] == ["old"]
    assert [entry.name for entry in folder.iterdir()] == ["out"]
    return caught.value


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_the_old_folder(writer: str, small_disk: Path) -> None:
    message = str(_refuse(writer, small_disk))
    assert message.startswith(f"{small_disk / 'out'}")
    expected = "the disk full?" if writer in ("numpy", "torch") else "No space left on device"
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_on_file_sizes_is_one_line_and_leaves_the_old_folder(writer: str, tmp_path: Path) -> None:
    (tmp_path / "limited").mkdir()
    error = _refuse(writer, tmp_path / "limited")
    assert Path(error.path).is_relative_to(tmp_path / "limited" / "out")
    words = {"numpy": "the disk full?", "torch": "the disk full?", "sqlite": "Input/output error"}
    assert words.get(writer, "File too large") in error.reason


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda folder: store.write_text(folder / "a.txt", "x" * 200_000), "a.txt"),
        (lambda folder: store.save_qrels(folder / "q.parquet", MANY_QRELS), "q.parquet"),
    ],
)
def test_a_file_that_does_not_fit_keeps_the_old_one(write: Write, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("old")
    with (
        pytest.raises(WriteError, match=f"{tmp_path / name}: cannot be written: File too large"),
        _limited(resource.RLIMIT_FSIZE, 60_000),
    ):
        write(tmp_path)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_too_many_open_files_are_one_line(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    with _limited(resource.RLIMIT_NOFILE, held), pytest.raises(WriteError, match=r"x\.txt: .*Too many open files"):
        store.write_text(tmp_path / "x.txt", "x")
    os.close(held)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        child = os.fork()
        if not child:
            try:
                if os.geteuid() == 0:  # whom no folder refuses
                    os.setuid(65534)
                os._exit(run_to_exit_code(lambda: store.write_json(folder / "x.json", {})))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        folder.chmod(0o755)
    assert capfd.readouterr().err == f"error: {folder / 'x.json'}: cannot be written: Permission denied\n"


def test_a_file_in_a_folders_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "artifacts").touch()
    with pytest.raises(WriteError, match=r"artifacts/tables: cannot be written: (Not a directory|File exists)"):
        _write_nothing(tmp_path / "artifacts" / "tables")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(WriteError, match=r"x\.json: cannot be written: Is a directory"):
        store.write_json(tmp_path / "x.json", {})


def _write_nothing(place: Path) -> None:
    with store.replace_dir(place):
        pass


def _fail(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "mlruns/a"), "mlruns/a: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "data/x.jpg"), "data/x.jpg: Permission denied"),
        (OSError(errno.EMFILE, "Too many"), "a file cannot be opened or written: Too many open files"),
    ],
)
def test_commands_say_it_in_one_line_and_exit_2(
    error: OSError, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_to_exit_code(lambda: _fail(error)) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    monkeypatch.setattr(cli, "load_params_for_dvc", lambda *_: _fail(error))
    ended = CliRunner().invoke(cli.app, ["params", "check", "x.yaml"])
    assert (ended.exit_code, ended.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize("error", [ValueError("x"), ConnectionError(errno.ECONNREFUSED, "refused"), KeyError("disk")])
def test_what_is_no_disks_fault_keeps_its_traceback(error: Exception) -> None:
    assert explain(error) is None
    with pytest.raises(type(error)):
        run_to_exit_code(lambda: _fail(error))


def test_a_store_that_cannot_note_the_failure_does_not_hide_where_it_was() -> None:
    failed = RuntimeError("(sqlite3.OperationalError) database or disk is full")
    failed.__context__ = WriteError("artifacts/policy", "No space left on device")
    assert explain(failed) == "artifacts/policy: No space left on device"


def test_a_file_that_is_read_is_not_said_to_be_written(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied", "data/x.jpg")
    with pytest.raises(PermissionError), store.replace_dir(tmp_path / "x"):
        raise refused
    assert explain(refused) == "data/x.jpg: Permission denied"
    error = DataError("cannot be read: Permission denied", path="data/x.jpg")
    assert find_disk_fault(error) is None
    assert explain(error) == "data/x.jpg: cannot be read: Permission denied"
