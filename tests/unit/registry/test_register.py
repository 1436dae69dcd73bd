"""The registry: what a version carries, when it becomes champion, what it answers by its alias."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.config import Params
from pipeline.core.region_search import Reshaping
from pipeline.errors import DataError, StageError
from pipeline.files.store import load_results, read_json, save_pools, save_queries, save_results, write_json
from pipeline.models.model_folder import compute_model_digest
from pipeline.policy.view_shape import load_view_shape, save_view_shape
from pipeline.retrieval import encoder as encoder_module
from pipeline.retrieval import index as index_module
from pipeline.runs.tracking import null_run, open_store, stage_run
from pipeline.stages import register
from pipeline.types import Pool, QueryResult
from tests.fakes.evaluation_fakes import NUM_DOCUMENTS, PARAMS, FakeWorld, ask_and_evaluate, build_fake_world

# MLflow's own warnings; and every test makes a store.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
DOC_IDS = [f"d{i:02d}" for i in range(NUM_DOCUMENTS)]


class FakeEncoder:
    """Embeds a picture as its mean colour, centred and normalised."""

    digest = "fake"
    input_size_px = 16

    def encode_images(self, images: list[Any]) -> np.ndarray:
        colours = np.array([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) - 128.0 for image in images])
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)


class FakeIndex:
    doc_ids = DOC_IDS

    def __init__(self) -> None:
        vectors = np.random.default_rng(1).normal(size=(NUM_DOCUMENTS, 3)).astype(np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def __len__(self) -> int:
        return NUM_DOCUMENTS

    def get_vectors(self, doc_ids: list[str]) -> np.ndarray:
        return self._vectors[[DOC_IDS.index(doc_id) for doc_id in doc_ids]]

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries_QD @ self._vectors.T
        rows = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, rows, 1), rows


@pytest.fixture(scope="module")
def scorer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def evaluation_dir(tmp_path_factory: pytest.TempPathFactory, scorer_dir: Path) -> Iterator[Path]:
    """What evaluate says of the fake world, which is the same each time that it is built."""
    with pytest.MonkeyPatch.context() as patch:
        world = build_fake_world(tmp_path_factory.mktemp("evaluated"), patch, num_queries=24, num_val=48)
        ask_and_evaluate(_params(scorer_dir), world.workspace)
        yield world.workspace.evaluation_dir


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation_dir: Path, scorer_dir: Path) -> FakeWorld:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    world = build_fake_world(tmp_path, monkeypatch, num_queries=24, num_val=48)
    shutil.copytree(evaluation_dir, world.workspace.evaluation_dir)
    world.workspace.index_dir.mkdir(parents=True)
    (world.workspace.index_dir / "config.json").write_text("{}")
    for folder in (world.workspace.index_dir, world.workspace.pools_dir):
        write_json(folder / "meta.json", {"encoder_digest": "e", "documents_sha256": "d"})
    (tmp_path / "scorer").symlink_to(scorer_dir)
    monkeypatch.setattr(encoder_module, "load_encoder", lambda *_: FakeEncoder())
    monkeypatch.setattr(index_module, "load_index", lambda _folder, _digest: FakeIndex())
    return world


def _params(scorer_dir: Path) -> Params:
    raw = PARAMS.model_dump(mode="json", by_alias=True)
    return Params.model_validate({**raw, "scorer": {"path": str(scorer_dir)}})


def _params_of(world: FakeWorld) -> Params:
    return _params((world.workspace.data_dir.parent / "scorer").resolve())


def _evaluate_another(world: FakeWorld) -> None:
    """Put other weights in the policy's place; the fake one answers as before."""
    config = world.workspace.policy_dir / "config.json"
    config.write_text(config.read_text() + " ")
    ask_and_evaluate(_params_of(world), world.workspace)


def _register(world: FakeWorld) -> dict[str, Any]:
    params = _params_of(world)
    with stage_run("register", params, world.workspace.data_dir.parent) as run:
        figures = register.run(params, world.workspace, run)
    assert not {"version", "promoted"} & figures.keys()
    return dict(run.facts)


def test_a_version_carries_the_shape_of_its_crops(world: FakeWorld) -> None:
    """It lies beside the weights, so figures of another shape are figures of another policy."""
    import mlflow

    shape = Reshaping(0.1, is_square=True)
    save_view_shape(shape, world.workspace.policy_dir)
    with pytest.raises(StageError, match=r"another state of .*policy"):
        _register(world)
    ask_and_evaluate(_params_of(world), world.workspace)
    _register(world)
    model = mlflow.pyfunc.load_model("models:/region-r1@challenger")
    assert load_view_shape(Path(model._model_impl.context.artifacts["policy"])) == shape


def test_first_version_beats_the_full_image_and_answers_by_alias(world: FakeWorld) -> None:
    import mlflow
    import pandas as pd

    registered = _register(world)
    assert registered["version"] == 1
    assert registered["aliases"] == ["challenger", "champion"]
    assert (registered["gate"]["split"], registered["gate"]["bar"]) == ("val", "the full image")
    assert registered["gate"]["difference"]["low"] > 0
    root = world.workspace.data_dir.parent
    version = open_store(root).get_model_version_by_alias("region-r1", "champion")
    report = read_json(world.workspace.evaluation_dir / "report.json")
    assert version.tags["data_md5"] == report["data_md5"]
    assert float(version.tags["rgrpo.mrr"]) == pytest.approx(report["methods"]["rgrpo"]["mrr"]["mean"], abs=1e-4)

    model = mlflow.pyfunc.load_model("models:/region-r1@champion")
    path = world.workspace.data_dir / "images/q01.jpg"
    encoded = base64.b64encode(path.read_bytes()).decode()
    rows = [
        {
            "image": f"data:image/jpeg;base64,{encoded}",
            "question": "crop 0.1 0.1 0.5 0.5",
            "candidates": ["d03", "d01", "d07"],
        },
        {"image": encoded, "question": "crop 0.1 0.1 0.5 0.5", "candidates": ["d07", "d03", "d01"]},
        {"image": encoded, "question": "keep it", "candidates": ["d01"]},
        {"image": encoded, "question": "?", "candidates": ["d01"]},
    ]
    answers = model.predict(pd.DataFrame(rows))
    assert list(answers["decision"]) == ["region", "region", "full", "malformed"]
    assert answers["box"][0] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    assert answers["box"][2] is None
    assert list(answers["doc_ids"][0]) == list(answers["doc_ids"][1])
    assert list(answers["scores"][0]) == sorted(answers["scores"][0], reverse=True)

    whole = model.predict(pd.DataFrame([{"image": encoded, "question": "keep it"}]))
    assert len(whole["doc_ids"][0]) == NUM_DOCUMENTS
    # A path of the server opens nothing, be it there or not.
    for source in (str(path), "/etc/passwd", "no such file!"):
        with pytest.raises(DataError, match=r"model input, row 2: `image` is no picture file's content in base64"):
            model.predict(pd.DataFrame([{"image": image, "question": "keep it"} for image in (encoded, source)]))


def test_what_dvc_tracks_says_nothing_of_this_machines_registry(world: FakeWorld) -> None:
    path = world.workspace.registration_path
    _register(world)
    first = path.read_bytes()
    open_store(world.workspace.data_dir.parent).delete_registered_model("region-r1")
    assert _register(world)["version"] == 1
    assert path.read_bytes() == first
    content = read_json(path)
    report = read_json(world.workspace.evaluation_dir / "report.json")
    assert content["policy_digest"] == compute_model_digest(world.workspace.policy_dir)
    assert content["pools_sha256"] == report["pools_sha256"]
    assert content["metrics"]["mrr"] == report["methods"]["rgrpo"]["mrr"]["mean"]


def test_next_version_must_beat_the_champion_on_the_same_pools(world: FakeWorld) -> None:
    _register(world)
    _evaluate_another(world)
    registered = _register(world)
    assert (registered["version"], registered["aliases"]) == (2, ["challenger"])
    assert registered["gate"]["bar"] == "champion version 1"
    assert registered["gate"]["difference"]["mean"] == 0.0

    folder = world.workspace.evaluation_dir
    path = folder / "val_results.parquet"
    rows = load_results(path)
    save_results(path, [row if row.method != "rgrpo" else _put_first(row, world) for row in rows])
    assert _register(world)["aliases"] == ["challenger", "champion"]

    client = open_store(world.workspace.data_dir.parent)
    client.set_model_version_tag("region-r1", "3", "val_pools_sha256", "others")
    _evaluate_another(world)
    registered = _register(world)
    assert registered["aliases"] == ["challenger"]
    assert "other val pools" in registered["gate"]["reason"]
    aliases = client.get_registered_model("region-r1").aliases
    assert {name: int(version) for name, version in aliases.items()} == {"challenger": 4, "champion": 3}


def test_gate_reads_val_and_test_is_only_reported(world: FakeWorld) -> None:
    path = world.workspace.evaluation_dir / "results.parquet"
    wrong = [replace(row, first_rank=2) if row.method == "rgrpo" else row for row in load_results(path)]
    save_results(path, wrong)  # whatever test says, the gate does not look
    registered = _register(world)
    report = read_json(world.workspace.evaluation_dir / "report.json")
    assert registered["gate"]["promoted"]
    assert registered["gate"]["difference"]["mean"] == pytest.approx(
        report["val"]["paired"]["rgrpo_minus_full"]["cond_recall_at_1"]["mean"]
    )
    registered = read_json(world.workspace.registration_path)
    on_test = {pair: values["cond_recall_at_1"] for pair, values in report["paired"].items()}
    assert registered["test_differences"] == on_test


def test_gate_says_how_the_policy_stands_to_the_best_rule(world: FakeWorld) -> None:
    gate = _register(world)["gate"]
    report = read_json(world.workspace.evaluation_dir / "report.json")
    on_val = {name: values["cond_recall_at_1"]["mean"] for name, values in report["val"]["methods"].items()}
    assert gate["best_rule"] == report["best_rule"]
    assert gate["minus_best_rule"]["mean"] == pytest.approx(on_val["rgrpo"] - on_val[report["best_rule"]])
    assert f"the best rule, {report['best_rule']}" in gate["reason"]


def test_without_val_nothing_is_promoted(tmp_path: Path, world: FakeWorld) -> None:
    workspace = world.workspace
    save_queries(workspace.tables_dir / "queries.parquet", world.queries)
    save_pools(workspace.pools_dir / "pools.parquet", world.pools)
    ask_and_evaluate(_params_of(world), workspace)
    registered = _register(world)
    assert registered["aliases"] == ["challenger"]
    assert "no val pool holds a positive" in registered["gate"]["reason"]
    assert registered["gate"]["difference"] is None
    assert registered["gate"]["best_rule"] is None


def test_register_needs_an_evaluation_and_a_store(world: FakeWorld) -> None:
    with pytest.raises(StageError, match="tracking store"):
        register.run(PARAMS, world.workspace, null_run())
    (world.workspace.evaluation_dir / "report.json").unlink()
    with pytest.raises(StageError, match="run evaluate first"):
        register.run(PARAMS, world.workspace, SimpleNamespace(run_id="r"))  # type: ignore[arg-type]


def test_the_same_content_keeps_its_version(world: FakeWorld) -> None:
    first, again = _register(world), _register(world)
    assert first["version"] == again["version"] == 1
    assert again["aliases"] == ["challenger", "champion"]
    assert again["gate"]["reason"] == "it is the champion already"
    assert len(open_store(world.workspace.data_dir.parent).search_model_versions("name = 'region-r1'")) == 1


@pytest.mark.parametrize("num_aliases", [0, 1])
def test_a_run_that_was_killed_after_its_version_is_finished_by_the_next(
    world: FakeWorld, num_aliases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    left = num_aliases
    real = mlflow.MlflowClient.set_registered_model_alias

    def set_alias(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SystemExit(137)
        real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", set_alias)
        _register(world)
    assert not world.workspace.registration_path.exists()
    registered = _register(world)
    assert (registered["version"], registered["aliases"]) == (1, ["challenger", "champion"])
    assert registered["gate"]["bar"] == "the full image"
    client = open_store(world.workspace.data_dir.parent)
    assert client.get_model_version_by_alias("region-r1", "champion").version == 1
    assert len(client.search_model_versions("name = 'region-r1'")) == 1
    assert world.workspace.registration_path.exists()


def test_figures_of_other_inputs_are_not_registered(world: FakeWorld) -> None:
    spaces = world.workspace
    pools, config, meta = (
        spaces.pools_dir / "pools.parquet",
        spaces.policy_dir / "config.json",
        spaces.index_dir / "meta.json",
    )
    changes: list[tuple[Path, Callable[[], object], str]] = [
        (pools, lambda: save_pools(pools, _reverse(world)), "of another state of .*pools; run evaluate again"),
        (config, lambda: config.write_text("[]"), "of another state of .*policy; run answer and evaluate again"),
        (meta, lambda: write_json(meta, {"encoder_digest": "x", "documents_sha256": "d"}), "run retrieve again"),
    ]
    with stage_run("register", _params_of(world), spaces.data_dir.parent) as run:
        for path, change, message in changes:
            before = path.read_bytes()
            change()
            with pytest.raises(StageError, match=message) as caught:
                register.run(_params_of(world), spaces, run)
            assert "\n" not in str(caught.value)
            path.write_bytes(before)
        other = _params_of(world).model_copy(update={"seed": 99})
        with pytest.raises(StageError, match=r"of params\.yaml; run evaluate again"):
            register.run(other, spaces, run)
    assert open_store(spaces.data_dir.parent).search_registered_models() == []


def test_queries_that_were_added_since_ask_for_another_evaluation(world: FakeWorld) -> None:
    new = replace(world.val_pools[0], query_id="v99"), replace(world.val_queries[0], query_id="v99")
    save_pools(world.workspace.pools_dir / "pools.parquet", [*world.pools, *world.val_pools, new[0]])
    save_queries(world.workspace.tables_dir / "queries.parquet", [*world.queries, *world.val_queries, new[1]])
    with pytest.raises(StageError, match="run evaluate again"):
        register.run(_params_of(world), world.workspace, SimpleNamespace(run_id="r"))  # type: ignore[arg-type]


def test_requirements_name_installed_packages() -> None:
    import importlib.metadata

    assert all(importlib.metadata.version(name) for name in register._REQUIREMENTS)


def _reverse(world: FakeWorld) -> list[Pool]:
    """Give the val queries other pools: the same candidates from the other end."""
    turned = [replace(pool, doc_ids=pool.doc_ids[::-1], relevance=pool.relevance[::-1]) for pool in world.val_pools]
    return [*world.pools, *turned]


def _put_first(row: QueryResult, world: FakeWorld) -> QueryResult:
    has_positive = {pool.query_id: pool.has_positive for pool in world.val_pools}
    return replace(row, first_rank=1) if has_positive[row.query_id] else row
