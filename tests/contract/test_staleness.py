"""What DVC itself holds stale after a change, in a checkout whose outputs are stand-ins."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.stages import STAGE_NAMES
from tests.import_closure import CHECKOUT

# DVC's own; and each test asks it in a checkout of its own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WITH_POLICY = {"warmup", "train", "answer", "register"}
WITH_SCORER = set(STAGE_NAMES) - {"prepare", "answer", "report"}


class Checkout:
    """A checkout of the present code, `dvc commit`ted with something in the place of every output."""

    def __init__(self, root: Path, models: Path) -> None:
        self.root, self.models = root, models
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(CHECKOUT / name, root / name)
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "pipeline", root / "pipeline", ignore=skipped)
        params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
        for section, name in (("scorer", "path"), ("policy", "path"), ("evaluate", "transfer_scorer")):
            params[section][name] = str(models / section)
            _write(models / section / "model.safetensors", "weights")
        _write(root / "params.yaml", yaml.safe_dump(params))
        _write(root / "data" / "queries.jsonl", "{}")
        for stage in yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
            for out in (*stage["outs"], *(next(iter(metric)) for metric in stage["metrics"])):
                _write(root / out if Path(out).suffix else root / out / "out.json", out)

    def commit(self) -> None:
        from dvc.repo import Repo

        with contextlib.chdir(self.root), Repo.init(str(self.root), no_scm=True) as repo:
            repo.commit(force=True)

    def list_stale(self) -> set[str]:
        """Return the stages that `dvc status` names."""
        from dvc.repo import Repo

        with contextlib.chdir(self.root), Repo(str(self.root)) as repo:
            return set(repo.status())

    def set(self, section: str, **changes: object) -> None:
        path = self.root / "params.yaml"
        params: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        params[section] = {**params.get(section, {}), **changes}
        _write(path, yaml.safe_dump(params))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("models"))
    checkout.commit()
    return checkout


@pytest.fixture
def checkout(committed: Checkout) -> Iterator[Checkout]:
    """The checkout with nothing stale; what the test changes is put back."""
    kept = {path: path.read_bytes() for top in (committed.root, committed.models) for path in _list_inputs(top)}
    assert committed.list_stale() == set()
    yield committed
    for path, content in kept.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def _list_inputs(top: Path) -> list[Path]:
    names = ("*.py", "params.yaml", "*.safetensors")
    return [path for name in names for path in top.rglob(name) if ".dvc" not in path.parts]


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("batches", {"policy": 1, "scorer": 1}),
        ("flow", {"stage_timeout_s": 1}),
        ("demo", {"num_test": 13}),
        ("ablation", {"max_steps": 1}),
    ],
)
def test_what_cannot_change_a_result_makes_nothing_stale(
    checkout: Checkout, section: str, changes: dict[str, int]
) -> None:
    checkout.set(section, **changes)
    assert checkout.list_stale() == set()


@pytest.mark.parametrize(
    ("folder", "stale"),
    [("scorer", WITH_SCORER), ("policy", WITH_POLICY), ("evaluate", {"evaluate"})],
)
def test_a_changed_model_folder_makes_its_stages_stale(checkout: Checkout, folder: str, stale: set[str]) -> None:
    _write(checkout.models / folder / "model.safetensors", "other weights")
    assert checkout.list_stale() == stale


@pytest.mark.parametrize(
    ("module", "stale"),
    [
        ("config", set(STAGE_NAMES)),
        ("types", set(STAGE_NAMES)),
        ("training/sft", {"warmup"}),
        ("training/grpo/trainer", {"train"}),
        ("registry/serving", {"register"}),
        ("evaluation/answers/asking", {"answer"}),
        ("evaluation/oracle", {"evaluate"}),
        ("report/charts", {"report"}),
        ("process/progress", set()),
        ("cli", set()),
    ],
)
def test_changed_code_makes_the_stages_stale_that_import_it(checkout: Checkout, module: str, stale: set[str]) -> None:
    path = checkout.root / "pipeline" / f"{module}.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert checkout.list_stale() == stale


@pytest.mark.parametrize(
    ("section", "changes", "stale"),
    [
        ("register", {"model_name": "other"}, {"register"}),
        ("train", {"beta": 0.5}, {"train", "evaluate"}),  # evaluate's report names the parameters behind it
        ("answer", {"num_samples": 3}, {"answer", "evaluate"}),  # likewise
        ("evaluate", {"num_resamples": 300}, {"evaluate", "register"}),
        ("scorer", {"dtype": "float16"}, WITH_SCORER),
    ],
)
def test_a_changed_section_makes_the_stages_stale_that_read_it(
    checkout: Checkout, section: str, changes: dict[str, object], stale: set[str]
) -> None:
    checkout.set(section, **changes)
    assert checkout.list_stale() == stale
