"""All nine stages, one after another, on a tiny world with tiny random models."""

from __future__ import annotations

import base64
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import run_stage
from pipeline.evaluation.methods import METHODS
from pipeline.files.store import load_labels, load_pools, load_queries, load_results, load_rollouts, read_json
from pipeline.stages import STAGES
from pipeline.workspace import Workspace
from tests.small_run import write_small_run

# MLflow and its database layer warn about themselves.
pytestmark = [pytest.mark.smoke, pytest.mark.filterwarnings("ignore")]


class FinishedRun:
    """The checkout after all stages, and what each of them returned."""

    def __init__(self, root: Path, scorer_dir: Path, policy_dir: Path, lora: dict[str, Any] | None) -> None:
        self.root = root
        self.weights = "adapter_model.safetensors" if lora else "model.safetensors"
        self.workspace = Workspace.at(root)
        write_small_run(
            root,
            scorer_dir,
            policy_dir,
            policy={"lora": lora},
            # The second scorer is a copy of the first one: it must find what the first one found.
            answer={"num_samples": 2},
            evaluate={"transfer_scorer": str(shutil.copytree(scorer_dir, root / "second"))},
        )
        self.figures = {stage: run_stage(stage, root / "params.yaml", root) for stage in STAGES}

        # A random scorer may leave val without a positive; then no rule is chosen, and the report says so.
        report = read_json(self.workspace.evaluation_dir / "report.json")
        self.methods = set(METHODS) - set(report["left_out"])
        self.searched = set(report["search"])


@pytest.fixture(scope="module", params=[None, {"rank": 2}], ids=["full", "lora"])
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_clip_dir: Path,
    tiny_llava_dir: Path,
    request: pytest.FixtureRequest,
) -> FinishedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("REGION_R1_PARENT_RUN_ID", raising=False)
        return FinishedRun(tmp_path_factory.mktemp("checkout"), tiny_clip_dir, tiny_llava_dir, request.param)


def test_every_stage_leaves_its_outputs(finished: FinishedRun) -> None:
    workspace = finished.workspace
    assert list(STAGES) == [
        "prepare",
        "index",
        "retrieve",
        "warmup",
        "train",
        "answer",
        "evaluate",
        "report",
        "register",
    ]
    for path in (
        *(workspace.tables_dir / f"{name}.parquet" for name in ("queries", "documents", "qrels", "rejects")),
        workspace.index_dir / "vectors.npy",
        workspace.pools_dir / "pools.parquet",
        workspace.pools_dir / "baseline.parquet",
        workspace.labels_dir / "labels.parquet",
        workspace.sft_dir / finished.weights,
        workspace.policy_dir / finished.weights,
        workspace.rollouts_dir / "rollouts.parquet",
        *(workspace.answers_dir / name for name in ("answers.parquet", "meta.json")),
        *(workspace.evaluation_dir / name for name in ("results.parquet", "val_results.parquet", "report.json")),
        workspace.report_dir / "report.html",
        *(workspace.evaluation_dir / "runs" / f"{method}.trec" for method in ("full", "centre", "random", "oracle")),
        workspace.registration_path,
        *(workspace.metrics_path(stage) for stage in STAGES),
    ):
        assert path.is_file(), path
        assert path.stat().st_size > 0, path
    # The run of a policy that only stammers is empty: a malformed answer ranks nothing.
    runs = {path.stem for path in (workspace.evaluation_dir / "runs").glob("*.trec")}
    assert finished.searched
    assert runs == finished.methods | {f"search_{method}" for method in finished.searched}
    assert not [folder for name in ("train", "answer") if (folder := workspace.checkpoints_dir / name).exists()]
    assert not [path for path in workspace.artifacts_dir.rglob("*") if "partial" in path.name]


def test_every_figure_is_finite(finished: FinishedRun) -> None:
    for stage, figures in finished.figures.items():
        assert figures, stage
        assert all(math.isfinite(value) for value in figures.values()), (stage, figures)
        assert json.loads(finished.workspace.metrics_path(stage).read_text()) == figures


def test_tables_fit_each_other(finished: FinishedRun) -> None:
    workspace = finished.workspace
    queries = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    train = {pool.query_id for pool in pools if pool.split == "train"}
    assert len(queries) == 44
    assert all(len(pool.doc_ids) == 6 for pool in pools)
    labels = load_labels(workspace.labels_dir / "labels.parquet")
    assert labels
    assert {label.query_id for label in labels} <= train
    rollouts = load_rollouts(workspace.rollouts_dir / "rollouts.parquet")
    assert len(rollouts) == 2 * 2 * 4
    assert {rollout.query_id for rollout in rollouts} <= train
    results = load_results(workspace.evaluation_dir / "results.parquet")
    assert len(results) == len(finished.methods) * 12
    assert {queries[row.query_id].split for row in results} == {"test"}


def test_report_has_all_methods(finished: FinishedRun) -> None:
    report = read_json(finished.workspace.evaluation_dir / "report.json")
    assert set(report["methods"]) == finished.methods
    assert report["num_queries"] == 12
    for metrics in report["methods"].values():
        for interval in metrics.values():
            assert interval is None or all(math.isfinite(interval[key]) for key in ("mean", "low", "high"))
    assert report["methods"]["oracle"]["mrr"]["mean"] >= report["methods"]["full"]["mrr"]["mean"]


def test_transfer_to_the_same_scorer_changes_nothing(finished: FinishedRun) -> None:
    report = read_json(finished.workspace.evaluation_dir / "report.json")
    transfer = report["behaviour"]["transfer"]
    assert transfer["model_type"] == "clip"
    for method, metrics in transfer["methods"].items():
        for metric, interval in metrics.items():
            wanted = report["methods"][method][metric]
            assert (interval is None) == (wanted is None)
            assert interval is None or interval["mean"] == pytest.approx(wanted["mean"], abs=1e-6)


def test_registered_model_reranks_by_its_alias(finished: FinishedRun) -> None:
    import mlflow
    import pandas as pd

    verdict = read_json(finished.workspace.provenance_path("register"))
    assert "challenger" in verdict["aliases"]
    model = mlflow.pyfunc.load_model(f"models:/{verdict['model_name']}@challenger")
    pool = next(pool for pool in load_pools(finished.workspace.pools_dir / "pools.parquet") if pool.split == "test")
    queries = {q.query_id: q for q in load_queries(finished.workspace.tables_dir / "queries.parquet")}
    query = queries[pool.query_id]
    row = {
        "image": base64.b64encode((finished.workspace.data_dir / query.image_path).read_bytes()).decode(),
        "question": query.question,
        "candidates": list(pool.doc_ids),
    }
    answer = model.predict(pd.DataFrame([row])).iloc[0]
    assert answer["decision"] in ("region", "full", "malformed")
    assert sorted(answer["doc_ids"]) == sorted(pool.doc_ids)
    assert list(answer["scores"]) == sorted(answer["scores"], reverse=True)
    result = next(
        row
        for row in load_results(finished.workspace.evaluation_dir / "results.parquet")
        if row.method == "rgrpo" and row.query_id == pool.query_id
    )
    assert answer["decision"] == result.decision
    if result.decision != "malformed":
        assert list(answer["doc_ids"]) == list(result.doc_ids)
