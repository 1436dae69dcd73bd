"""A checkpoint counts when it is whole, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.training.checkpoints import find_checkpoint, is_whole, seal_checkpoint


def _write(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "ref").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(100)))
    (checkpoint / "ref" / "adapter.safetensors").write_bytes(b"abc")
    if sealed:
        seal_checkpoint(checkpoint)
    return checkpoint


def test_newest_is_found_by_number(tmp_path: Path) -> None:
    for step in (25, 100, 75):
        _write(tmp_path, step)
    (tmp_path / "completions").mkdir()
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_there_may_be_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "nothing") is None
    assert find_checkpoint(tmp_path) is None


def test_unsealed_gives_way_and_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, 1)
    cut = _write(tmp_path, 2, sealed=False)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert not cut.exists()
    assert caplog.text.count("was cut off") == 1


@pytest.mark.parametrize("file", ["model.safetensors", "ref/adapter.safetensors", "seal.json"])
@pytest.mark.parametrize("damage", ["halve", "delete", "flip"])
def test_any_damage_is_seen(tmp_path: Path, file: str, damage: str) -> None:
    path = _write(tmp_path, 1) / file
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "halve" else bytes([content[0] ^ 1]) + content[1:])
    assert not is_whole(tmp_path / "checkpoint-1")
    assert find_checkpoint(tmp_path) is None
