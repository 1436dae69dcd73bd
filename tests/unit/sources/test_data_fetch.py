"""`region-r1 data fetch` against a server on this machine: resume, size, checksum, refusal; never the internet."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.errors import DataError, WriteError
from pipeline.sources import fetch
from pipeline.sources.fetch import PUBLISHED_FILES, PublishedFile, fetch_files

CONTENT = bytes(range(256)) * 40


class Store:
    """Files that a little server gives out, with ranges, ETag and MD5 as Google's does."""

    def __init__(self) -> None:
        self.files = {"/a.csv": CONTENT, "/b.csv": b"question\n"}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.gives_md5 = True
        self.wrong_md5 = False
        self.honours_ranges = True
        self.range_shift = 0
        self.stated_bytes: int | None = None
        self.says_size = True
        self.status: int | None = None
        self.url = ""


@pytest.fixture
def server() -> Iterator[Store]:
    store = Store()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            content = store.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            asked = self.headers.get("Range")
            store.requests.append((f"{self.command} {self.path}", asked))
            start = 0
            if store.status is not None and with_body:
                self.send_error(store.status)
                return
            if store.honours_ranges and asked is not None and self.headers.get("If-Range", etag) == etag:
                start = int(asked.removeprefix("bytes=").rstrip("-")) - store.range_shift
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            # What HEAD says is what counts; a body may turn out otherwise.
            num_bytes = len(content) - start if with_body or store.stated_bytes is None else store.stated_bytes
            if store.says_size:
                self.send_header("Content-Length", str(num_bytes))
            self.send_header("ETag", etag)
            md5 = hashlib.md5(b"other" if store.wrong_md5 else content).digest()
            if store.gives_md5:
                self.send_header("x-goog-hash", "crc32c=AAAAAA==")
                self.send_header("x-goog-hash", f"md5={base64.b64encode(md5).decode()}")
            self.end_headers()
            if with_body:
                self.wfile.write(content[start : store.cut_after])

    http_server = HTTPServer(("127.0.0.1", 0), Handler)
    store.url = f"http://127.0.0.1:{http_server.server_port}"
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    yield store
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def name_files(server: Store, *names: str, content_sha256: str | None = None) -> list[PublishedFile]:
    return [PublishedFile(name=name, url=f"{server.url}/{name}", content_sha256=content_sha256) for name in names]


def fetch_all(files: list[PublishedFile], folder: Path) -> list[str]:
    lines: list[str] = []
    fetch_files(files, folder, lines.append, confirm=lambda _: True)
    return lines


def test_files_come_whole_and_are_recorded(server: Store, tmp_path: Path):
    lines = fetch_all(name_files(server, "a.csv", "b.csv"), tmp_path)
    assert lines[0].startswith("0.00 GB in 2 files, 0.00 GB still to fetch")
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    record = json.loads((tmp_path / "fetched.json").read_text())
    assert record["a.csv"]["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv", "fetched.json"]
    assert "checked by size, the server's MD5 (no SHA-256 is published)" in lines[1]


def test_broken_download_goes_on_where_it_stopped(server: Store, tmp_path: Path):
    server.cut_after = 3000
    with pytest.raises(DataError, match="the same command goes on from there") as caught:
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.csv").exists()
    server.cut_after = None
    fetch_all(name_files(server, "a.csv"), tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT
    assert server.requests[-1] == ("GET /a.csv", "bytes=3000-")


def test_a_file_that_changed_meanwhile_starts_again(server: Store, tmp_path: Path):
    server.cut_after = 3000
    with pytest.raises(DataError):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    server.cut_after, server.files["/a.csv"] = None, CONTENT[::-1]
    lines = fetch_all(name_files(server, "a.csv"), tmp_path)
    assert "a.csv: the server's file has changed, starting again" in lines
    assert (tmp_path / "a.csv").read_bytes() == CONTENT[::-1]


def test_second_fetch_loads_nothing_and_says_so(server: Store, tmp_path: Path):
    fetch_all(name_files(server, "a.csv"), tmp_path)
    server.requests.clear()
    lines = fetch_all(name_files(server, "a.csv"), tmp_path)
    assert server.requests == [("HEAD /a.csv", None)]
    assert "is here already" in lines[1]


def test_wrong_md5_is_refused_and_removed(server: Store, tmp_path: Path):
    server.wrong_md5 = True
    with pytest.raises(DataError, match=r"has MD5 .*; refused"):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert not (tmp_path / "a.csv").exists()
    assert not (tmp_path / "a.csv.part").exists()


def test_published_hash_is_that_of_the_packed_content(server: Store, tmp_path: Path):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("kb.json", CONTENT)
    server.files["/kb.zip"] = buffer.getvalue()
    right = hashlib.sha256(CONTENT).hexdigest()
    lines = fetch_all(name_files(server, "kb.zip", content_sha256=right), tmp_path)
    assert "the published SHA-256" in lines[1]
    with pytest.raises(DataError, match=r"holds content of SHA-256 .*, published is 00; refused"):
        fetch_all(name_files(server, "kb.zip", content_sha256="00"), tmp_path / "other")
    assert not (tmp_path / "other" / "kb.zip").exists()


@pytest.mark.parametrize("changed", [CONTENT[:-1], CONTENT[::-1]])
def test_local_file_that_was_changed_is_refused_and_kept(server: Store, tmp_path: Path, changed: bytes):
    server.gives_md5 = False
    fetch_all(name_files(server, "a.csv"), tmp_path)
    (tmp_path / "a.csv").write_bytes(changed)
    with pytest.raises(DataError, match="remove it"):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == changed


def test_missing_file_and_silent_server_are_one_line(server: Store, tmp_path: Path):
    with pytest.raises(DataError, match="cannot be fetched: HTTP Error 404"):
        fetch_all(name_files(server, "none.csv"), tmp_path)
    gone = [PublishedFile(name="a.csv", url="http://127.0.0.1:1/a.csv")]
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch_all(gone, tmp_path)


def test_refusal_to_confirm_fetches_nothing(server: Store, tmp_path: Path):
    asked: list[int] = []
    fetch_files(name_files(server, "a.csv"), tmp_path, lambda _: None, confirm=lambda size: bool(asked.append(size)))
    assert asked == [len(CONTENT)]
    assert list(tmp_path.iterdir()) == []


def test_command_says_the_size_before_it_fetches(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "PUBLISHED_FILES", {"evqa": name_files(server, "a.csv")})
    out = tmp_path / "data"
    ended = CliRunner().invoke(cli.app, ["data", "fetch", "evqa", "--out", str(out)], input="n\n")
    assert (ended.exit_code, out.exists()) == (0, False)
    assert "GB still to fetch" in ended.stderr
    ended = CliRunner().invoke(cli.app, ["data", "fetch", "evqa", "--out", str(out), "--yes"])
    assert ended.exit_code == 0
    assert (out / "a.csv").read_bytes() == CONTENT


def test_published_names_are_those_that_the_sources_read():
    from pipeline.sources.formats.layout import PUBLISHED_ANNOTATIONS, PUBLISHED_KNOWLEDGE_BASES

    for source, files in PUBLISHED_FILES.items():
        names = {file.name for file in files}
        assert set(PUBLISHED_ANNOTATIONS[source].values()) <= names
        assert names & set(PUBLISHED_KNOWLEDGE_BASES[source])


def test_server_that_ignores_ranges_starts_again_and_the_file_comes_whole(server: Store, tmp_path: Path):
    server.cut_after = 3000
    with pytest.raises(DataError):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    server.cut_after, server.honours_ranges = None, False
    lines = fetch_all(name_files(server, "a.csv"), tmp_path)
    assert "a.csv: starts again" in lines
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


def test_range_from_another_place_is_refused_and_nothing_is_mixed(server: Store, tmp_path: Path):
    server.cut_after = 3000
    with pytest.raises(DataError):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    server.cut_after, server.range_shift = None, 7
    with pytest.raises(DataError, match="sent another part than was asked for"):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert (tmp_path / "a.csv.part").read_bytes() == CONTENT[:3000]


def test_more_bytes_than_the_server_said_are_refused_and_removed(server: Store, tmp_path: Path):
    server.stated_bytes = 4000
    with pytest.raises(DataError, match=r"has \d+ bytes, the server's has 4000; refused"):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert not list(tmp_path.glob("a.csv*"))


@pytest.mark.parametrize("status", [403, 416, 500, 503])
def test_refusal_half_way_is_one_line_and_keeps_what_came(server: Store, tmp_path: Path, status: int):
    server.cut_after = 3000
    with pytest.raises(DataError):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    server.cut_after, server.status = None, status
    with pytest.raises(DataError, match=f"download broke off: HTTP Error {status}") as caught:
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "a.csv.part").stat().st_size == 3000
    server.status = None
    fetch_all(name_files(server, "a.csv"), tmp_path)
    assert (tmp_path / "a.csv").read_bytes() == CONTENT


def test_server_that_does_not_say_the_size_is_refused(server: Store, tmp_path: Path):
    server.says_size = False
    with pytest.raises(DataError, match="does not say how large it is"):
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_disk_without_room_is_refused_before_the_first_byte(
    server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: (10**12, 10**12, len(CONTENT) - 1))
    with pytest.raises(DataError, match=r"has 0\.00 GB free, 0\.00 GB are to come"):
        fetch_all(name_files(server, "a.csv"), tmp_path / "new" / "data")
    assert [command for command, _ in server.requests] == ["HEAD /a.csv"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_disk_that_fills_up_is_named_as_such(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *rest: object, **options: object) -> object:
        target = Path("/dev/full") if path.name == "a.csv.part" and mode in ("ab", "wb") else path
        return whole(target, mode, *rest, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(WriteError, match=r"a\.csv\.part: cannot be written: No space left on device") as caught:
        fetch_all(name_files(server, "a.csv"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.csv").exists()


def test_a_folder_that_is_a_file_is_one_line(server: Store, tmp_path: Path):
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        fetch_all(name_files(server, "a.csv"), tmp_path / "data")
