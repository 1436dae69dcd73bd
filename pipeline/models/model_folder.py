"""Model folders: where they lie, whether they are safe to open, and the hash that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import ModelError
from pipeline.files.store import read_json, write_json

_BUILTIN_DIR: Final = Path(__file__).resolve().parents[2] / "demo" / "models"
_PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_BASE_FILE: Final = "base.json"
_HASHED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".py"})


def resolve_model_path(spec: str | Path) -> Path:
    """Return the folder that `spec` names, as dvc.yaml reads it: a plain path, with no `~` to expand.

    Raises:
        ModelError: no such folder.
    """
    path = Path(spec)
    if not path.is_dir():
        raise ModelError(f"{spec}: no such model folder")
    return path


def is_builtin(spec: str | Path) -> bool:
    """Return whether a folder is one of the demo's own models."""
    return Path(spec).resolve().parent == _BUILTIN_DIR


def check_model_folder(path: Path) -> None:
    """Refuse a folder that cannot be opened safely: weights must be safetensors, never pickles.

    Raises:
        ModelError: no config.json, no weights, or weights only in a format that can run code.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: is no model folder, config.json is missing")
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(entry for entry in path.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(f"{pickles[0]}: can run code when opened; save the model as safetensors")
    raise ModelError(f"{path}: holds no *.safetensors weights")


def compute_model_digest(path: Path) -> str:
    """Return the sha256 over names and bytes of weights, configuration, tokenizer and code files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.suffix in _HASHED_SUFFIXES and entry.is_file()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()


def note_base(folder: Path, base_digest: str) -> None:
    """Write down which base model the policy in a folder was trained from."""
    write_json(folder / _BASE_FILE, {"digest": base_digest})


def check_base(base: str | Path, folders: Sequence[Path]) -> str:
    """Refuse policies that were trained from another base model than this one; a folder without a note passes.

    Args:
        base: `policy.path`.
        folders: of policies, whole or adapters.

    Returns:
        The base's digest, for `note_base`.

    Raises:
        ModelError: one of them was, or the base is missing.
    """
    digest = compute_model_digest(resolve_model_path(base))
    for folder in folders:
        if (folder / _BASE_FILE).is_file():
            check_digest(folder, digest)
    return digest


def check_digest(folder: Path, base_digest: str) -> None:
    """Refuse a policy whose note names another base.

    Raises:
        ModelError: it does.
        DataError: there is no note.
    """
    if read_json(folder / _BASE_FILE).get("digest") != base_digest:
        raise ModelError(f"{folder}: was trained on another base model than policy.path names; run warmup again")
