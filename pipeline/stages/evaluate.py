"""Stage evaluate: every method on every test query; tables, TREC runs, report.json, report.html."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Params
from pipeline.evaluation import methods as m
from pipeline.evaluation.figures import EvalReport, compute_report
from pipeline.evaluation.test_set import hash_pools, load_test_set
from pipeline.evaluation.trec import save_judgements, save_run
from pipeline.images import crop_view, load_upright
from pipeline.learn.scorer import FrozenScorer
from pipeline.report.gallery import build_panels, list_cards, pick_cards
from pipeline.report.page import ReportInputs, render_page
from pipeline.store import (
    load_curves,
    load_documents,
    load_qrels,
    load_rollouts,
    replace_dir,
    save_results,
    write_json,
    write_text,
)
from pipeline.tracking import StageRun, read_commit, read_data_md5
from pipeline.types import CurvePoint, Pool, Query, QueryResult
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

NUM_SAMPLE_CROPS = 8


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Evaluate all methods and write `evaluation_dir`.

    Returns:
        The means of the methods' figures as `METHOD.METRIC`; a figure without value is left out.

    Raises:
        StageError: there is no test query, or one has no pool.
    """
    queries, pools = load_test_set(workspace)
    choices = _decide_all(params, workspace, queries, pools)
    scorer = FrozenScorer.load(params, workspace)
    choices["oracle"] = m.search_oracle(scorer, pools, params.search)
    by_method = {name: m.score_choices(name, choices[name], queries, pools, scorer) for name in m.METHODS}
    results = [row for rows in by_method.values() for row in rows]
    logger.info("evaluate: %d rows; computing intervals", len(results))
    provenance = _describe_run(params, workspace, pools)
    report = compute_report(results, queries, pools, params.evaluate, seed=params.seed, provenance=provenance)
    with replace_dir(workspace.evaluation_dir) as folder:
        save_results(folder / "results.parquet", results)
        write_json(folder / "report.json", report.as_json())
        _save_runs(folder / "runs", by_method, workspace, queries)
        _save_crops(folder / "crops", queries, by_method["rgrpo"], params, workspace)
        page = _render(report, queries, pools, by_method, params, workspace)
        write_text(folder / "report.html", page)
    return _record(report, workspace.evaluation_dir, run)


def _decide_all(
    params: Params, workspace: Workspace, queries: Sequence[Query], pools: Sequence[Pool]
) -> dict[str, list[m.Choice]]:
    from pipeline.learn.policy import load_policy

    def ask(path: Path | str, *names: str) -> dict[str, list[m.Choice]]:
        policy = load_policy(path, params.policy)
        return {
            name: m.ask_policy(policy, queries, workspace.data_dir, params, name=name, blind=name == "rgrpo_blind")
            for name in names
        }

    return {
        "full": m.choose_full(queries),
        "centre": m.choose_centre(queries),
        "random": m.choose_random(queries, params.search, params.seed),
        **ask(params.policy.path, "base"),
        **ask(workspace.sft_dir, "sft"),
        **ask(workspace.policy_dir, "rgrpo", "rgrpo_blind"),
    }


def _describe_run(params: Params, workspace: Workspace, pools: Sequence[Pool]) -> dict[str, Any]:
    return {
        "params_sha256": params.sha256(),
        "data_md5": read_data_md5(workspace.data_dir) or _hash_tables(workspace.tables_dir),
        "pools_sha256": hash_pools(pools),
        "git_commit": read_commit(workspace.data_dir.parent),
        "seed": params.seed,
        "confidence": params.evaluate.confidence,
        "pool_size": params.retrieve.pool_size,
    }


def _hash_tables(tables_dir: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for name in ("queries", "documents", "qrels"):
        digest.update((tables_dir / f"{name}.parquet").read_bytes())
    return digest.hexdigest()


def _save_runs(
    folder: Path,
    by_method: Mapping[str, Sequence[QueryResult]],
    workspace: Workspace,
    queries: Sequence[Query],
) -> None:
    folder.mkdir()
    for name, rows in by_method.items():
        save_run(folder / f"{name}.trec", rows, f"region-r1-{name}")
    ids = {query.query_id for query in queries}
    qrels = [qrel for qrel in load_qrels(workspace.tables_dir / "qrels.parquet") if qrel.query_id in ids]
    save_judgements(folder / "qrels.txt", qrels)


def _save_crops(
    folder: Path, queries: Sequence[Query], rows: Sequence[QueryResult], params: Params, workspace: Workspace
) -> None:
    folder.mkdir()
    cropped = [(query, row.box) for query, row in zip(queries, rows, strict=True) if row.box is not None]
    for number, (query, box) in enumerate(cropped[:NUM_SAMPLE_CROPS]):
        path = workspace.data_dir / query.image_path
        image = load_upright(path, max_pixels=params.data.max_image_pixels, root=workspace.data_dir)
        crop_view(image, box).save(folder / f"{number}.jpg", quality=90)


def _render(
    report: EvalReport,
    queries: Sequence[Query],
    pools: Sequence[Pool],
    by_method: Mapping[str, Sequence[QueryResult]],
    params: Params,
    workspace: Workspace,
) -> str:
    cards, tally = list_cards(queries, by_method["full"], by_method["rgrpo"])
    panels = build_panels(
        pick_cards(cards),
        {pool.query_id: pool for pool in pools},
        {d.doc_id: d for d in load_documents(workspace.tables_dir / "documents.parquet")},
        workspace.data_dir,
        max_pixels=params.data.max_image_pixels,
    )
    cropped = [(query, row.box) for query, row in zip(queries, by_method["rgrpo"], strict=True) if row.box is not None]
    rollouts_path = workspace.rollouts_dir / "rollouts.parquet"
    return render_page(
        ReportInputs(
            report=report.as_json(),
            panels=panels,
            tally=tally,
            crops=[box for _, box in cropped],
            targets=[query.target_box for query, _ in cropped if query.target_box is not None],
            warmup_curve=_load_curve(workspace.curve_path("warmup")),
            train_curve=_load_curve(workspace.curve_path("train")),
            rollouts=load_rollouts(rollouts_path) if rollouts_path.is_file() else (),
        )
    )


def _load_curve(path: Path) -> Sequence[CurvePoint]:
    # Another world's evaluation borrows its policies, so no training lies beside it.
    return load_curves(path) if path.is_file() else ()


def _record(report: EvalReport, folder: Path, run: StageRun) -> dict[str, float]:
    for name in ("report.html", "report.json"):
        run.log_artifact(folder / name, "evaluation")
    for path in sorted((folder / "crops").iterdir()):
        run.log_artifact(path, "crops")
    run.set_tags({name: str(report.provenance[name]) for name in ("data_md5", "pools_sha256")})
    counts = {"num_queries": float(report.num_queries), "num_with_positive": float(report.num_with_positive)}
    means = {
        f"{method}.{metric}": interval.mean
        for method, metrics in report.methods.items()
        for metric, interval in metrics.items()
        if interval is not None
    }
    return counts | means
