"""DVC alone decides what is stale, so dvc.yaml names all that a stage reads: code, sections, model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from pipeline.config import BESIDE_EVALUATION, MODEL_FOLDERS, NO_RESULT, Params, load_params
from pipeline.stages import STAGE_NAMES
from tests.import_closure import CHECKOUT, find_closure, has_code, list_sections

# What a stage imports but what cannot change a byte of its outputs.
BESIDE_RESULTS: Final = {
    "pipeline/disk_faults.py": "what an error of a full disk says",
    "pipeline/process/environment.py": "how a process logs, ends and keeps off the network",
    "pipeline/process/interpreter.py": "which Python runs the stage at all",
    "pipeline/runs/metrics_files.py": "puts back a metrics file that the stage replaces at its end",
    "pipeline/process/processes.py": "whether a process that MLflow knows of still runs",
    "pipeline/process/progress.py": "draws a bar or a log line",
    "pipeline/runs/tracking.py": "tells MLflow; stages take nothing back but the run's id, which no tracked file holds",
}
SECTIONS: Final = frozenset(Params().model_dump(by_alias=True))
MODELS: Final = {
    "pipeline.policy.policy": "${policy.path}",
    "pipeline.retrieval.encoder": "${scorer.path}",
    "pipeline.evaluation.probes.transfer": "${evaluate.transfer_scorer}",
}
ARM: Final = "arm"
ALL: Final = (*STAGE_NAMES, ARM)


def _read_stage(name: str) -> dict[str, Any]:
    path = CHECKOUT / ("ablation/dvc.yaml" if name == ARM else "dvc.yaml")
    stage: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"][name]
    return stage


def _list_roots(name: str) -> list[str]:
    if name == ARM:
        return ["pipeline.ablation.__main__"]
    # MLflow runs serving.py as a file, from the copy of this package that register stores with the version.
    served = ["pipeline.registry.serving"] if name == "register" else []
    return ["pipeline.__main__", f"pipeline.stages.{name}", *served]


def _list_needed(name: str) -> set[str]:
    paths = {path for path in find_closure(*_list_roots(name)).values() if has_code(path)}
    return {path.relative_to(CHECKOUT).as_posix() for path in paths} - BESIDE_RESULTS.keys()


def _list_named(stage: dict[str, Any]) -> set[str]:
    """Return the files of code that a stage depends on, folders opened."""
    named = [CHECKOUT / dep for dep in stage["deps"] if dep.startswith("pipeline/")]
    files = [file for dep in named for file in ((dep,) if dep.suffix == ".py" else dep.rglob("*.py"))]
    return {file.relative_to(CHECKOUT).as_posix() for file in files if has_code(file)}


@pytest.mark.parametrize("name", ALL)
def test_a_stage_depends_on_the_code_that_it_imports_and_on_no_other(name: str) -> None:
    needed, named = _list_needed(name), _list_named(_read_stage(name))
    assert sorted(needed - named) == [], f"add to the deps of {name}, or one folder that holds no others"
    assert sorted(named - needed) == [], f"take out of the deps of {name}"


def test_code_that_is_left_out_is_there_and_imported() -> None:
    imported = {path for name in ALL for path in find_closure(*_list_roots(name)).values()}
    assert {CHECKOUT / path for path in BESIDE_RESULTS} <= imported


def test_only_the_stage_answer_loads_policies_for_an_evaluation() -> None:
    rooms = {
        stage: {name.split(".")[1] for name in find_closure(f"pipeline.stages.{stage}") if "." in name}
        for stage in ("answer", "evaluate", "report")
    }
    assert "policy" in rooms["answer"]
    assert "policy" not in rooms["evaluate"]
    # What a chart shows was measured by others; scorers and trainings cannot make it stale.
    assert not {"policy", "training", "reranking", "retrieval", "models"} & rooms["report"]


def test_templates_of_the_page_lie_in_a_folder_that_report_depends_on() -> None:
    templates = list((CHECKOUT / "pipeline").rglob("*.j2"))
    assert templates
    folders = {CHECKOUT / dep for dep in _read_stage("report")["deps"]}
    assert all(folders & set(template.parents) for template in templates)


@pytest.mark.parametrize("name", ALL)
def test_a_stage_depends_on_the_sections_that_its_code_reads(name: str) -> None:
    roots = [root for root in _list_roots(name) if root != "pipeline.__main__"]
    paths = [p for p in find_closure(*roots).values() if p.relative_to(CHECKOUT).as_posix() not in BESIDE_RESULTS]
    # The entry points read the number of threads for every stage; the rest of what they read is noted beside results.
    read = set().union(*(list_sections(path, SECTIONS) for path in paths)) - NO_RESULT | {"threads"}
    named = set(_read_stage(name)["params"])
    assert read <= named
    assert not named & NO_RESULT
    # report.json holds the hash over the first, the registered model the parameters behind its answers.
    whole = SECTIONS - {section.rstrip("_") for section in BESIDE_EVALUATION}
    beyond = {"evaluate": whole, "register": {"data", "policy", "retrieve", "scorer"}, ARM: {"scorer"}}
    assert named - read <= beyond.get(name, set())
    if name == "evaluate":
        assert named == whole


@pytest.mark.parametrize("name", ALL)
def test_a_stage_depends_on_the_model_folders_that_its_code_opens(name: str) -> None:
    modules = find_closure(*_list_roots(name))
    opened = {dep for module, dep in MODELS.items() if module in modules}
    assert {dep for dep in _read_stage(name)["deps"] if dep.startswith("${")} == opened


@pytest.mark.parametrize(
    "path", [CHECKOUT / "params.yaml", *sorted((CHECKOUT / "params").glob("*.yaml"))], ids=lambda path: path.stem
)
def test_shipped_parameters_spell_out_the_folders_that_dvc_reads(path: Path) -> None:
    raw, params = yaml.safe_load(path.read_text(encoding="utf-8")), load_params(path)
    assert raw["scorer"]["path"] == params.scorer.path
    assert raw["policy"]["path"] == params.policy.path
    assert raw["evaluate"]["transfer_scorer"] == params.evaluate.transfer_scorer


def test_what_dvc_looks_up_is_what_parameters_are_checked_for() -> None:
    stages = [_read_stage(name) for name in ALL]
    assert set().union(*(stage["params"] for stage in stages)) == SECTIONS - NO_RESULT
    folders = {dep for stage in stages for dep in stage["deps"] if dep.startswith("${")}
    assert folders == {f"${{{section}.{name}}}" for section, name in MODEL_FOLDERS}
