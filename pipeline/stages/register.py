"""Stage register: the policy with all it needs becomes a model version; a gate picks the champion.

What was registered last is always `challenger`. It becomes `champion` when it beats the present champion on the same
val pools (`pipeline.registry.gate`); without a champion the full image is what it must beat. How it stands to the best
rule that nobody trained is said beside that. Test figures are reported and decide nothing. A version is named by its
content: what is registered already keeps its number.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image

import pipeline
from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.methods import QuerySet
from pipeline.evaluation.query_set import hash_pools, load_query_set
from pipeline.files.store import load_results, read_json, write_json, writing
from pipeline.models.model_folder import compute_model_digest, resolve_model_path
from pipeline.policy.adapters import has_adapter
from pipeline.policy.policy import load_policy
from pipeline.registry.gate import GATE_METRIC, METHOD, Challenger, Gate, compare_on_val, confirm
from pipeline.runs.tracking import StageRun, read_commit
from pipeline.types import QueryResult
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
_RESULTS_FOLDER = "registration"
_VAL_RESULTS = "val_results.parquet"
_CONTENT_TAG = "content_sha256"
_MADE_WITH = ("encoder_digest", "documents_sha256")
_PACKAGE_DIR = Path(pipeline.__file__).parent
_COMPARABLE = ("data_md5", "val_pools_sha256")
_REQUIREMENTS = (
    "mlflow", "torch", "transformers", "peft", "safetensors", "faiss-cpu", "pillow", "numpy", "pandas", "pyarrow",
    "pydantic", "pyyaml", "rich",
)  # fmt: skip
_TAGGED_HASHES = ("data_md5", "pools_sha256", "val_pools_sha256", "params_sha256")
_TAGGED_METRICS = ("cond_recall_at_1", "mrr", "recall_at_1", "rc_rate", "harm_rate", "headroom")


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Register the r-GRPO policy and write registration.json: what was registered, by content.

    What is registered already keeps its version: a run that was killed after it had made one makes no second.
    Version, aliases and the gate's verdict hang on the registry of this machine; they go to MLflow and the provenance.

    Raises:
        StageError: evaluate has not run, or on other inputs than lie here; or there is no tracking store.
    """
    if run.run_id is None:
        raise StageError("register needs a tracking store; run it as `python -m pipeline register`")
    report = read_json(workspace.evaluation_dir / "report.json", stage="evaluate")
    val = load_query_set(workspace, "val")
    _check_evaluated(report, val, params, workspace)
    challenger = Challenger(load_results(workspace.evaluation_dir / _VAL_RESULTS), val, report["best_rule"])
    content = _describe_content(params, workspace, report)
    content_sha256 = _hash_content(content, workspace)
    client = mlflow.MlflowClient()
    name = params.register_.model_name
    champion = find_version(client, name, CHAMPION)
    version = _find_registered(client, name, content_sha256)
    gate = _build_gate(client, champion, version, challenger, report, params)
    run.log_artifact(workspace.evaluation_dir / _VAL_RESULTS, _RESULTS_FOLDER)
    if version is None:
        tags = {"git_commit": str(read_commit(workspace.data_dir.parent)), _CONTENT_TAG: content_sha256}
        version = _create_version(client, _log_model(params, workspace), name, run.run_id, report, tags)
    client.set_registered_model_alias(name, CHALLENGER, version)
    if gate.promoted:
        client.set_registered_model_alias(name, CHAMPION, version)
    is_champion = gate.promoted or (champion is not None and str(champion.version) == version)
    aliases = [CHALLENGER, CHAMPION] if is_champion else [CHALLENGER]
    verdict = {
        "model_name": name,
        "version": int(version),
        "aliases": aliases,
        "gate": {"split": "val", "metric": GATE_METRIC, **asdict(gate)},
    }
    run.note({**verdict, "promoted": gate.promoted})
    run.log_dict(content | verdict | {"run_id": run.run_id}, "registration.json")
    write_json(workspace.registration_path, content)
    logger.info("register: version %s is %s; %s", version, " and ".join(aliases), gate.reason)
    return _tagged_metrics(report)


def _check_evaluated(report: Mapping[str, Any], val: QuerySet, params: Params, workspace: Workspace) -> None:
    """Refuse figures of other inputs than those that would be registered under them."""
    index, pools = (read_json(folder / "meta.json") for folder in (workspace.index_dir, workspace.pools_dir))
    if any(index[name] != pools[name] for name in _MADE_WITH):
        raise StageError(f"{workspace.pools_dir} was made with another index than lies here; run retrieve again")
    present = {
        "pools_sha256": (workspace.pools_dir, hash_pools(load_query_set(workspace, "test").pools), "evaluate"),
        "val_pools_sha256": (workspace.pools_dir, hash_pools(val.pools), "evaluate"),
        "policy_digest": (workspace.policy_dir, compute_model_digest(workspace.policy_dir), "answer and evaluate"),
        "params_sha256": ("params.yaml", params.sha256(), "evaluate"),
    }
    for name, (what, digest, stages) in present.items():
        if report.get(name) != digest:
            raise StageError(f"{workspace.evaluation_dir} is of another state of {what}; run {stages} again")


def _hash_content(content: Mapping[str, Any], workspace: Workspace) -> str:
    """Return the hash that names a version by all that it is made of: model, parameters, results and code."""
    files = [workspace.evaluation_dir / _VAL_RESULTS, *sorted(_PACKAGE_DIR.rglob("*.py"))]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256(json.dumps([content, hashes, _list_requirements()], sort_keys=True).encode()).hexdigest()


def _find_registered(client: mlflow.MlflowClient, name: str, content_sha256: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.{_CONTENT_TAG} = '{content_sha256}'")
    return str(max(int(version.version) for version in found)) if found else None


def _build_gate(
    client: mlflow.MlflowClient,
    champion: ModelVersion | None,
    version: str | None,
    challenger: Challenger,
    report: Mapping[str, Any],
    params: Params,
) -> Gate:
    """Compare the new policy on val with the champion, or with the full image where there is none."""
    if champion is None:
        return compare_on_val(challenger, "the full image", challenger.list_rows("full"), params)
    bar = f"champion version {champion.version}"
    if str(champion.version) == version:
        return confirm(challenger, bar, params)
    same_pools = all(champion.tags.get(name) == report[name] for name in _COMPARABLE)
    return compare_on_val(challenger, bar, _load_rows(client, champion) if same_pools else None, params)


def _describe_content(params: Params, workspace: Workspace, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what names the registered model wherever it was registered: hashes of its parts and of its evaluation."""
    index = read_json(workspace.index_dir / "meta.json", stage="index")
    return {
        "model_name": params.register_.model_name,
        "policy_digest": compute_model_digest(workspace.policy_dir),
        **{name: index[name] for name in _MADE_WITH},
        **{name: report[name] for name in _TAGGED_HASHES},
        "metrics": _tagged_metrics(report),
        "test_differences": {pair: values[GATE_METRIC] for pair, values in report["paired"].items()},
    }


def find_version(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Return the version that an alias names, or None; any other failure of the registry is raised."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _load_rows(client: mlflow.MlflowClient, version: ModelVersion) -> list[QueryResult]:
    if version.run_id is None:
        raise StageError(f"version {version.version} of {version.name} names no run; register it again")
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(version.run_id, f"{_RESULTS_FOLDER}/{_VAL_RESULTS}", folder)
        return [row for row in load_results(Path(path)) if row.method == METHOD]


def _log_model(params: Params, workspace: Workspace) -> ModelInfo:
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder)), warnings.catch_warnings():
        params_path = Path(folder) / "params.yaml"
        params_path.write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)), encoding="utf-8")
        artifacts = {
            "params": params_path,
            "policy": _find_whole_policy(params, workspace, Path(folder) / "policy"),
            "scorer": resolve_model_path(params.scorer.path),
            "index": workspace.index_dir,
        }
        artifacts = {name: _follow_links(path, Path(folder) / "whole" / name) for name, path in artifacts.items()}
        signature, example = _describe_interface()
        # The signature is given below; MLflow would rather read it from type hints, and says so each time.
        warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")
        info: ModelInfo = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(_PACKAGE_DIR / "registry" / "serving.py"),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(_PACKAGE_DIR)],
            pip_requirements=_list_requirements(),
            signature=signature,
            input_example=example,
        )
        return info


def _list_requirements() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS]


def _find_whole_policy(params: Params, workspace: Workspace, merged_dir: Path) -> Path:
    """Return a policy folder that stands alone: the trained one, or `merged_dir` where that is only an adapter."""
    if not has_adapter(workspace.policy_dir):
        return workspace.policy_dir
    load_policy(workspace.policy_dir, params.policy).save_merged(merged_dir)
    return merged_dir


def _follow_links(path: Path, copy: Path) -> Path:
    """Return a file or folder without symbolic links in it, which MLflow refuses; `copy` where there were some.

    DVC leaves links where its cache lies on another disk, and the hub's cache consists of them.
    """
    if not any(part.is_symlink() for part in path.rglob("*")):
        return path
    shutil.copytree(path, copy)
    return copy


def _describe_interface() -> tuple[ModelSignature, Any]:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    text, texts, numbers = DataType.string, Array(DataType.string), Array(DataType.double)
    inputs = Schema(
        [
            ColSpec(text, "image"),
            ColSpec(text, "question"),
            ColSpec(texts, "candidates", required=False),
        ]
    )
    outputs = Schema(
        [
            ColSpec(text, "decision"),
            ColSpec(numbers, "box", required=False),
            ColSpec(texts, "doc_ids"),
            ColSpec(numbers, "scores"),
        ]
    )
    example = pd.DataFrame([{"image": _encode_grey_png(), "question": "Which bridge is this?"}])
    return ModelSignature(inputs=inputs, outputs=outputs), example


def _encode_grey_png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _create_version(
    client: mlflow.MlflowClient,
    info: ModelInfo,
    name: str,
    run_id: str,
    report: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    try:
        client.create_registered_model(name, description="Region-R1: crops the query image before re-ranking.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**tags, **{key: str(report[key]) for key in _TAGGED_HASHES}}
    tags |= {f"{METHOD}.{metric}": f"{value:.4f}" for metric, value in _tagged_metrics(report).items()}
    version = client.create_model_version(name, info.model_uri, run_id, tags=tags, model_id=info.model_id)
    return str(version.version)


def _tagged_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    figures = report["methods"][METHOD]
    return {metric: figures[metric]["mean"] for metric in _TAGGED_METRICS if figures[metric] is not None}
