"""Downloads of published annotation files and knowledge bases: resumed, measured, checked.

What is known about a file beforehand is in `PUBLISHED_FILES`. The publishers give a SHA-256 for one file only, the
E-VQA knowledge base; of every other file the server's size is checked, and its MD5 where the server gives one
(`x-goog-hash`). What was fetched is recorded in `fetched.json`, so that a later change of either side is noticed.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import DataError
from pipeline.files.store import read_json, write_json, writing
from pipeline.sources.formats.streams import open_packed

CHUNK_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 60.0
RECORD_FILE: Final = "fetched.json"
BYTES_PER_GB: Final = 1e9

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """One file to fetch; `content_sha256` is the published hash of what a packed file holds."""

    name: str
    url: str
    content_sha256: str | None = None


_EVQA: Final = "https://storage.googleapis.com/encyclopedic-vqa/"
_OVEN: Final = "https://storage.googleapis.com/gresearch/open-vision-language/"

PUBLISHED_FILES: Final[Mapping[str, Sequence[PublishedFile]]] = {
    "evqa": (
        *(PublishedFile(name=name, url=_EVQA + name) for name in ("train.csv", "val.csv", "test.csv")),
        PublishedFile(
            name="encyclopedic_kb_wiki.zip",
            url=_EVQA + "encyclopedic_kb_wiki.zip",
            content_sha256="36af1b6718a975c355a776114be216f4800c61320897b2186d33d17a08e44c77",
        ),
    ),
    "infoseek": (
        *(
            PublishedFile(name=name, url=f"{_OVEN}infoseek/{name}")
            for name in (
                "infoseek_train.jsonl",
                "infoseek_val.jsonl",
                "infoseek_train_withkb.jsonl",
                "infoseek_val_withkb.jsonl",
            )
        ),
        PublishedFile(name="Wiki6M_ver_1_0.jsonl.gz", url=_OVEN + "Wiki6M_ver_1_0.jsonl.gz"),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """What the server says about a file; `etag` and `md5` are None where it does not."""

    num_bytes: int
    etag: str | None
    md5: str | None


def fetch_files(files: Sequence[PublishedFile], folder: Path, say: Say, *, confirm: Callable[[int], bool]) -> None:
    """Download what is not there yet; a broken download goes on where it stopped.

    Args:
        files: what to fetch.
        folder: where to; `NAME.part` and what the server said about it lie there meanwhile.
        say: told in one line what happens to each file.
        confirm: told how many bytes are still to come before the first of them; False stops.

    Raises:
        DataError: the server cannot be reached, refuses, or sends something else than it said or was published; or
            the disk has no room.
    """
    remotes = {file.name: _ask(file) for file in files}
    num_left = sum(remote.num_bytes - _count_held(folder, name, remote) for name, remote in remotes.items())
    say(
        f"{sum(remote.num_bytes for remote in remotes.values()) / BYTES_PER_GB:.2f} GB in {len(files)} files, "
        f"{num_left / BYTES_PER_GB:.2f} GB still to fetch into {folder}"
    )
    _check_room(folder, num_left)
    if not confirm(num_left):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _fetch(file, remotes[file.name], folder, say)


def _fetch(file: PublishedFile, remote: RemoteFile, folder: Path, say: Say) -> None:
    path, part = folder / file.name, folder / f"{file.name}.part"
    if not path.is_file():
        _download(file, remote, part, say)
        sha256 = _verify(file, remote, part)
        _record(folder, file, remote, sha256)
        part.replace(path)
        part.with_suffix(".part.json").unlink(missing_ok=True)
        say(f"{file.name}: fetched, {_describe_check(file, remote)}; sha256 {sha256}")
        return
    known = _load_record(folder).get(file.name)
    if path.stat().st_size != remote.num_bytes:
        raise DataError(f"has {path.stat().st_size} bytes, the server's has {remote.num_bytes}; remove it", path=path)
    sha256 = _verify(file, remote, path)
    if known is not None and known["sha256"] != sha256:
        raise DataError(f"is not what was fetched (sha256 {known['sha256']}); remove it to fetch it again", path=path)
    _record(folder, file, remote, sha256)
    say(f"{file.name}: is here already, {_describe_check(file, remote)}")


def _check_room(folder: Path, num_bytes: int) -> None:
    """Refuse a place without room for what is to come, before any of it comes."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir():
        raise DataError("is no folder", path=place)
    num_free = shutil.disk_usage(place)[2]
    if num_bytes > num_free:
        message = f"has {num_free / BYTES_PER_GB:.2f} GB free, {num_bytes / BYTES_PER_GB:.2f} GB are to come"
        raise DataError(message, path=folder)


def _download(file: PublishedFile, remote: RemoteFile, part: Path, say: Say) -> None:
    state = part.with_suffix(".part.json")
    if part.is_file() and (not state.is_file() or read_json(state) != asdict(remote)):
        say(f"{file.name}: the server's file has changed, starting again")
        part.unlink()
    write_json(state, asdict(remote))
    num_held = part.stat().st_size if part.is_file() else 0
    if num_held >= remote.num_bytes:
        return
    headers = {"Range": f"bytes={num_held}-"} if num_held else {}
    if num_held and remote.etag is not None:
        headers["If-Range"] = remote.etag
    try:
        with urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT_S) as answer:
            goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {num_held}-"):
                raise DataError("the server sent another part than was asked for", path=file.url)
            if num_held:
                say(f"{file.name}: " + (f"goes on after {num_held} bytes" if goes_on else "starts again"))
            # A disk that refuses is told with the file; what the network does is told with the address, below.
            with writing(part), part.open("ab" if goes_on else "wb") as stream:
                while chunk := answer.read(CHUNK_BYTES):
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(f"download broke off: {error}; the same command goes on from there", path=file.url) from error


def _verify(file: PublishedFile, remote: RemoteFile, path: Path) -> str:
    """Return the file's SHA-256; a download that is wrong is removed, because going on cannot fix it."""
    num_bytes = path.stat().st_size
    if num_bytes < remote.num_bytes:
        message = f"download broke off at {num_bytes} of {remote.num_bytes} bytes; the same command goes on from there"
        raise DataError(message, path=file.url)
    with path.open("rb") as stream:
        md5 = base64.b64encode(hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).digest())
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    fault = None
    if num_bytes != remote.num_bytes:
        fault = f"has {num_bytes} bytes, the server's has {remote.num_bytes}"
    elif remote.md5 is not None and md5.decode() != remote.md5:
        fault = f"has MD5 {md5.decode()}, the server's has {remote.md5}"
    elif file.content_sha256 is not None and (found := _hash_content(path, file)) != file.content_sha256:
        fault = f"holds content of SHA-256 {found}, published is {file.content_sha256}"
    if fault is not None:
        if path.suffix == ".part":
            path.unlink()
            path.with_suffix(".part.json").unlink(missing_ok=True)
        raise DataError(f"{fault}; refused", path=path)
    return sha256


def _hash_content(path: Path, file: PublishedFile) -> str:
    digest = hashlib.sha256()
    with open_packed(path, Path(file.name).suffix) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _ask(file: PublishedFile) -> RemoteFile:
    request = urllib.request.Request(file.url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            headers = answer.headers
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(f"cannot be fetched: {error}", path=file.url) from error
    length = headers.get("Content-Length", "")
    if not length.isdigit():
        raise DataError("cannot be fetched: the server does not say how large it is", path=file.url)
    hashes = [part.strip() for line in headers.get_all("x-goog-hash", []) for part in line.split(",")]
    md5 = next((part.removeprefix("md5=") for part in hashes if part.startswith("md5=")), None)
    return RemoteFile(num_bytes=int(length), etag=headers.get("ETag"), md5=md5)


def _count_held(folder: Path, name: str, remote: RemoteFile) -> int:
    held = (path.stat().st_size for path in (folder / name, folder / f"{name}.part") if path.is_file())
    return min(next(held, 0), remote.num_bytes)


def _describe_check(file: PublishedFile, remote: RemoteFile) -> str:
    checks = ["size"]
    checks += ["the server's MD5"] if remote.md5 is not None else []
    checks += ["the published SHA-256"] if file.content_sha256 is not None else []
    unverified = "" if file.content_sha256 is not None else " (no SHA-256 is published)"
    return f"checked by {', '.join(checks)}{unverified}"


def _load_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_FILE
    return dict(read_json(path)) if path.is_file() else {}


def _record(folder: Path, file: PublishedFile, remote: RemoteFile, sha256: str) -> None:
    entry = {"url": file.url, "sha256": sha256, "num_bytes": remote.num_bytes}
    write_json(folder / RECORD_FILE, {**_load_record(folder), file.name: entry})
