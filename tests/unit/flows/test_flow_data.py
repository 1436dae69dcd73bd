"""data/ is made what data.dvc names, in this order: as it lies, from the cache, from the remote, drawn again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.execution import data
from flows.execution.data import DataStepError, materialise_data
from flows.execution.outcome import Outcome

pytestmark = pytest.mark.filterwarnings("ignore")  # DVC's own


class Checkout:
    """A checkout with data/ under DVC, and an empty remote beside it."""

    def __init__(self, root: Path, remote: Path) -> None:
        from dvc.repo import Repo

        self.root, self.remote = root, remote
        self.data = root / "data"
        self.draw(root)
        with Repo.init(str(root), no_scm=True) as repo:
            repo.add(str(self.data))
        self.named = (root / "data.dvc").read_text()

    def draw(self, root: Path) -> None:
        """Do as `region-r1 demo make-data` does: the same bytes each time."""
        (root / "data").mkdir()
        (root / "data" / "queries.jsonl").write_text("{}\n")

    def lose(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.root / name)

    def set_remote(self, url: str) -> None:
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo, repo.config.edit() as config:
            config["remote"]["store"] = {"url": url}
            config["core"]["remote"] = "store"

    def push(self) -> None:
        from dvc.repo import Repo

        with Repo(str(self.root)) as repo:
            repo.push()

    def bring(self, generate: Callable[[Path], None] | None = None) -> str:
        """Run the step and check that it leaves what data.dvc names, and data.dvc alone."""
        message = materialise_data(self.root, generate or _refuse_to_draw)
        assert (self.data / "queries.jsonl").read_text() == "{}\n"
        assert (self.root / "data.dvc").read_text() == self.named
        return message


def _refuse_to_draw(root: Path) -> None:
    raise AssertionError("nothing had to be drawn")


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    root = tmp_path / "checkout"
    root.mkdir()
    with contextlib.chdir(root):
        yield Checkout(root, tmp_path / "remote")


def test_data_that_are_right_are_left_alone(checkout: Checkout) -> None:
    assert checkout.bring().startswith(data.UNCHANGED)


def test_data_that_are_right_go_into_an_empty_cache(checkout: Checkout) -> None:
    checkout.lose(".dvc/cache")
    assert "put into the cache" in checkout.bring()
    assert checkout.bring().startswith(data.UNCHANGED)


def test_missing_data_come_out_of_the_cache(checkout: Checkout) -> None:
    checkout.lose("data")
    assert "out of the cache" in checkout.bring()


def test_missing_data_come_from_the_remote(checkout: Checkout) -> None:
    checkout.set_remote(str(checkout.remote))
    checkout.push()
    checkout.lose("data", ".dvc/cache")
    assert "pulled from the default remote" in checkout.bring()


def test_data_that_the_remote_does_not_have_are_drawn_again(checkout: Checkout) -> None:
    checkout.remote.mkdir()
    checkout.set_remote(str(checkout.remote))
    checkout.lose("data", ".dvc/cache")
    assert "drawn again, byte for byte" in checkout.bring(checkout.draw)


def test_changed_data_are_refused_and_nothing_is_touched(checkout: Checkout) -> None:
    (checkout.data / "queries.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataStepError, match=r"data/ is not what data\.dvc names.*run `dvc add data` to accept it"):
        materialise_data(checkout.root, _refuse_to_draw)
    assert (checkout.data / "queries.jsonl").read_text() == '{"id": 1}\n'
    assert (checkout.root / "data.dvc").read_text() == checkout.named


def test_data_drawn_differently_are_refused(checkout: Checkout) -> None:
    def draw_otherwise(root: Path) -> None:
        (root / "data").mkdir()
        (root / "data" / "queries.jsonl").write_text("[]\n")

    checkout.lose("data", ".dvc/cache")
    with pytest.raises(DataStepError, match=r"data/ as drawn again from params\.yaml is not"):
        materialise_data(checkout.root, draw_otherwise)
    assert (checkout.root / "data.dvc").read_text() == checkout.named


def test_a_checkout_without_data_dvc_says_how_to_make_one(checkout: Checkout) -> None:
    (checkout.root / "data.dvc").unlink()
    with pytest.raises(DataStepError, match=r"data\.dvc is missing.*dvc add data"):
        materialise_data(checkout.root, _refuse_to_draw)


def test_a_remote_that_cannot_be_read_may_answer_later(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from dvc.repo import Repo

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    checkout.set_remote(str(checkout.remote))
    checkout.lose("data", ".dvc/cache")
    monkeypatch.setattr(Repo, "pull", fail)
    monkeypatch.setenv("REGION_R1_ROOT", str(checkout.root))
    assert data.main(["--outcome", str(tmp_path / "outcome.json")]) == 75
    outcome = Outcome.read(tmp_path / "outcome.json")
    assert outcome is not None
    assert (outcome.kind, outcome.message) == ("unavailable", "the default DVC remote cannot be read: no route to host")
    assert capsys.readouterr().err == f"error: {outcome.message}\n"


def test_a_checkout_that_another_command_holds_is_busy(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    import dvc.lock

    monkeypatch.setattr(dvc.lock, "DEFAULT_TIMEOUT", 0)
    checkout.lose("data")
    with dvc.lock.Lock(str(checkout.root / ".dvc" / "tmp" / "lock")), pytest.raises(DataStepError) as refusal:
        materialise_data(checkout.root, _refuse_to_draw)
    assert refusal.value.kind == "busy"
    assert "is busy: pid " in str(refusal.value)


def test_a_person_reads_one_line_and_a_flow_reads_json(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("REGION_R1_ROOT", str(checkout.root))
    assert data.main(["--outcome", str(tmp_path / "outcome.json")]) == 0
    outcome = Outcome.read(tmp_path / "outcome.json")
    assert outcome is not None
    assert outcome.kind == "unchanged"
    assert capsys.readouterr().out == f"{outcome.message}\n"
    (checkout.data / "queries.jsonl").write_text("")
    assert data.main([]) == 2


def test_a_generator_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data.sys, "executable", str(tmp_path / "python"))
    program = tmp_path / "region-r1"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(DataStepError, match="exited with 3"):
        data._generate_demo(tmp_path)


def test_a_linked_data_folder_is_sent_to_the_page_that_says_what_works(checkout: Checkout, tmp_path: Path) -> None:
    checkout.data.rename(tmp_path / "elsewhere")
    checkout.data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataStepError, match=r"data/ is a link; docs/data-format\.md"):
        materialise_data(checkout.root, checkout.draw)
