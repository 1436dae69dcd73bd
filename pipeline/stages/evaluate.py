"""Stage evaluate: every method on every test query, and how the trained policy behaves; tables, runs, the report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Params
from pipeline.core.seeds import derive_seed
from pipeline.evaluation import methods as m
from pipeline.evaluation.behaviour import ProbedPolicy, SecondScorer, describe_behaviour
from pipeline.evaluation.figures import EvalReport, ResultTable, compute_report
from pipeline.evaluation.query_set import hash_pools, load_query_set
from pipeline.evaluation.selection import list_cropped
from pipeline.evaluation.trec import save_judgements, save_run
from pipeline.images import crop_view, load_upright
from pipeline.learn.model_folder import check_base
from pipeline.learn.scorer import FrozenScorer
from pipeline.learn.transfer import load_transfer_scorer
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
from pipeline.tracking import StageRun
from pipeline.types import CurvePoint, Pool, Query, QueryResult
from pipeline.workspace import Workspace, read_data_md5

logger = logging.getLogger(__name__)

NUM_SAMPLE_CROPS = 8


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Evaluate all methods and write `evaluation_dir`.

    Returns:
        The means of the methods' figures as `METHOD.METRIC`, and InfoSeek's harmonic means as
        `METHOD.infoseek_METRIC` where both of its splits are there; a figure without value is left out.

    Raises:
        StageError: there is no test query, or a val or test query has no pool.
        ModelError: a policy or a scorer cannot be loaded.
    """
    val, test = load_query_set(workspace, "val"), load_query_set(workspace, "test")
    queries, pools = test.queries, test.pools
    check_base(params.policy.path, (workspace.sft_dir, workspace.policy_dir))
    # A stale index shall not show only after hours of answers; weights wait, for the policy needs the device.
    FrozenScorer.check(params, workspace)
    choices, probed = _decide_all(params, workspace, val, test)
    scorer = FrozenScorer.load(params, workspace)
    choices["oracle"] = m.search_oracle(scorer, pools, params.search)
    by_method = {name: m.score_choices(name, choices[name], queries, pools, scorer) for name in m.METHODS}
    results = [row for rows in by_method.values() for row in rows]
    second = _load_second_scorer(params, workspace, test)
    logger.info("evaluate: %d rows; computing intervals", len(results))
    table = ResultTable(results, pools)
    behaviour = describe_behaviour(table, choices, probed, val, test, scorer, second, params.evaluate, seed=params.seed)
    report = compute_report(
        table,
        queries,
        params.evaluate,
        seed=params.seed,
        provenance=_describe_run(params, workspace, pools),
        behaviour=behaviour,
    )
    with replace_dir(workspace.evaluation_dir) as folder:
        save_results(folder / "results.parquet", results)
        write_json(folder / "report.json", report.as_json())
        _save_runs(folder / "runs", by_method, workspace, queries)
        _save_crops(folder / "crops", queries, by_method["rgrpo"], params, workspace)
        page = _render(report, queries, pools, by_method, params, workspace)
        write_text(folder / "report.html", page)
    return _record(report, workspace.evaluation_dir, run)


def _decide_all(
    params: Params, workspace: Workspace, val: m.QuerySet, test: m.QuerySet
) -> tuple[dict[str, list[m.Choice]], ProbedPolicy]:
    from pipeline.learn.vllm_engine import load_asked_policy

    def ask(policy: m.DecidingPolicy, name: str, *, blind: bool = False) -> list[m.Choice]:
        return m.ask_policy(policy, test.queries, workspace.data_dir, params, name=name, blind=blind)

    def load(path: str | Path) -> m.DecidingPolicy:
        return load_asked_policy(path, params.policy, params.batches.policy)

    choices = {
        "full": m.choose_full(test.queries),
        "centre": m.choose_centre(test.queries),
        "random": m.choose_random(test.queries, params.search, params.seed),
        "base": ask(load(params.policy.path), "base"),
        "sft": ask(load(workspace.sft_dir), "sft"),
    }
    trained = load(workspace.policy_dir)
    choices["rgrpo"] = ask(trained, "rgrpo")
    choices["rgrpo_blind"] = ask(trained, "rgrpo_blind", blind=True)
    return choices, _probe(trained, params, workspace, val, test, choices["rgrpo"])


def _probe(
    policy: m.DecidingPolicy,
    params: Params,
    workspace: Workspace,
    val: m.QuerySet,
    test: m.QuerySet,
    greedy: Sequence[m.Choice],
) -> ProbedPolicy:
    """Ask about every val and test query with REGION forced, and draw regions where the greedy answer crops."""

    def force(queries: Sequence[Query], name: str) -> list[m.Answer]:
        forced = partial(policy.decide, force_region=True)
        return m.ask_in_batches(forced, queries, workspace.data_dir, params, name=name)

    cropped = list_cropped(test.queries, greedy)
    draw = partial(policy.sample_regions, num_samples=params.evaluate.num_samples)
    seeds = [derive_seed(params.seed, query.query_id) for query in cropped]
    drawn = m.ask_in_batches(draw, cropped, workspace.data_dir, params, name="sampled regions", seeds=seeds)
    return ProbedPolicy(
        forced_val=force(val.queries, "val, REGION forced"),
        forced_test=force(test.queries, "test, REGION forced"),
        samples={query.query_id: answers for query, answers in zip(cropped, drawn, strict=True)},
    )


def _load_second_scorer(params: Params, workspace: Workspace, test: m.QuerySet) -> SecondScorer | None:
    name = params.second_scorer
    if name is None:
        return None
    scorer, model_type = load_transfer_scorer(name, params, workspace, test.queries, test.pools)
    return SecondScorer(name, model_type, scorer)


def _describe_run(params: Params, workspace: Workspace, pools: Sequence[Pool]) -> dict[str, Any]:
    return {
        "params_sha256": params.sha256(),
        "data_md5": read_data_md5(workspace.data_dir) or _hash_tables(workspace.tables_dir),
        "pools_sha256": hash_pools(pools),
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
    scores = {
        f"{method}.infoseek_{metric}": score.harmonic_mean.mean
        for method, metrics in report.infoseek.items()
        for metric, score in metrics.items()
        if score.harmonic_mean is not None
    }
    return counts | means | scores
