"""The command line: exit codes, JSON that is only JSON, quick start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import __main__ as stage_command
from pipeline import cli
from pipeline.ablation.arms import ARMS
from pipeline.errors import StageError
from pipeline.evaluation.methods import METHODS
from pipeline.evaluation.rules import RULES
from pipeline.results import JSON_METRICS
from pipeline.stages import STAGE_NAMES, STAGES, evaluate
from tests.fakes.evaluation_fakes import PARAMS, ask_and_evaluate, build_fake_world

runner = CliRunner()


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world = build_fake_world(tmp_path, monkeypatch, num_queries=14)
    ask_and_evaluate(PARAMS, world.workspace)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_as_json_are_json_and_complete(evaluated: Path) -> None:
    ended = runner.invoke(cli.app, ["results", "--json"])
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert set(found["methods"]) == set(METHODS)
    assert set(found["methods"]["rgrpo"]) == set(JSON_METRICS)
    assert set(found["methods"]["rgrpo"]["mrr"]) == {"mean", "low", "high"}
    assert set(found["paired"]) == {
        "rgrpo_minus_best_rule",
        "rgrpo_minus_base",
        "rgrpo_minus_sft",
        "sft_minus_base",
        "rgrpo_minus_full",
    }
    assert set(found["paired"]["rgrpo_minus_best_rule"]) == {"cond_recall_at_1", "mrr"}
    assert {found["best_rule"], found["best_rgrpo"]} <= set(METHODS)
    assert set(found["val"]["methods"]) == {"full", "base", "sft", "rgrpo", *RULES}
    assert set(found["paired"]["rgrpo_minus_full"]["cond_recall_at_1"]) == {"mean", "low", "high", "p_value"}
    assert found["num_queries"] == 14
    assert len(found["params_sha256"]) == 64
    assert set(found["behaviour"]) == {"by_baseline_rank", "threshold", "selection", "transfer"}
    assert len(found["data_md5"]) == 32
    assert (found["reproduced"], found["differs"]) == (None, [])


def test_results_for_people_name_every_method(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ended = runner.invoke(cli.app, ["results"])
    assert ended.exit_code == 0
    for label in ("full image", "r-GRPO", "oracle (ceiling)", "CondR@1", "against best rule (", "as chosen on val"):
        assert label in ended.stdout


def test_missing_results_are_one_line_and_exit_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["results"], ["results", "--world", "9", "--json"]):
        ended = runner.invoke(cli.app, arguments)
        assert ended.exit_code == 2
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert "run evaluate first" in ended.stderr


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_print_results", interrupt)
    assert runner.invoke(cli.app, ["results"]).exit_code == 130


def test_params_check_names_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shipped = Path("params.yaml").read_text(encoding="utf-8")
    path.write_text(shipped)
    ended = runner.invoke(cli.app, ["params", "check", str(path)])
    assert ended.exit_code == 0
    assert "sha256" in ended.stdout
    for text, message in (
        (shipped.replace("  beta:", "  betta:"), "train.betta: unknown parameter"),
        ("train: {beta: 0.1}\n", "DVC reads this file without our defaults, write out: seed, threads, data,"),
        (shipped + "seed: 8\n", "`seed` stands there again, first in line 3; remove one"),
    ):
        path.write_text(text)
        ended = runner.invoke(cli.app, ["params", "check", str(path)])
        assert ended.exit_code == 2
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_start_up_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "mlflow", "prefect", "pandas", "datasets"]
    loaded = f"[name for name in {heavy} if name in sys.modules]"
    code = f"import sys, pipeline.cli, pipeline.__main__; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stage_table_is_in_order_and_every_stage_exists() -> None:
    assert tuple(STAGES) == STAGE_NAMES
    folder = Path(evaluate.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(STAGE_NAMES)


@pytest.mark.filterwarnings("ignore")
def test_stage_command_writes_metrics_and_maps_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("seed: 3\n")
    stages = {"good": lambda *_: {"count": 2.0}, "bad": _fail, "stopped": _interrupt}
    monkeypatch.setattr(stage_command, "STAGES", stages)
    assert stage_command.main(["good"]) == 0
    assert json.loads((tmp_path / "artifacts/metrics/good.json").read_text()) == {"count": 2.0}
    capsys.readouterr()
    assert stage_command.main(["bad"]) == 2
    assert stage_command.main(["stopped"]) == 130
    assert stage_command.main(["unknown"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: run prepare first",
        "error: unknown stage 'unknown'; there are good, bad, stopped",
    ]
    assert not (tmp_path / "artifacts/metrics/bad.json").exists()


def _fail(*_arguments: object) -> dict[str, float]:
    raise StageError("run prepare\nfirst")


def _interrupt(*_arguments: object) -> dict[str, float]:
    raise KeyboardInterrupt


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A checkout whose ablations are done at once, and the arms that were asked for."""
    asked: list[list[str]] = []

    def ablate(arms: list[str]) -> int:
        asked.append(list(arms))
        (tmp_path / "artifacts/ablation").mkdir(parents=True)
        summary = {"num_queries": 3, "tables": []}
        (tmp_path / "artifacts/ablation/summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr("flows.launch.ablate", ablate)
    monkeypatch.chdir(tmp_path)
    return asked


def test_ablate_prints_the_summary_as_json_and_nothing_else(launched: list[list[str]]) -> None:
    ended = runner.invoke(cli.app, ["ablate", "--arms", "stock, full,stock", "--json"])
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == {"num_queries": 3, "tables": []}
    assert launched == [["stock", "full"]]


def test_ablate_trains_all_arms_unless_told(launched: list[list[str]]) -> None:
    runner.invoke(cli.app, ["ablate", "--json"])
    assert launched == [list(ARMS)]


def test_an_unknown_arm_is_one_line_and_starts_nothing(launched: list[list[str]]) -> None:
    ended = runner.invoke(cli.app, ["ablate", "--arms", "full,fulll"])
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: unknown arm 'fulll'; there are full, stock")
    assert ended.stderr.count("\n") == 1
    assert launched == []


def test_a_failed_ablation_hands_its_exit_code_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.launch.ablate", lambda _arms: 2)
    ended = runner.invoke(cli.app, ["ablate", "--json"])
    assert ended.exit_code == 2
    assert ended.stdout == ""
