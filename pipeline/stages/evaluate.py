"""Stage evaluate: every method on every test query, and how the trained policy behaves; tables, runs, report.json.

What the policies say was asked by the stage answer. Here it is scored, and no policy is loaded.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Params
from pipeline.evaluation import methods as m
from pipeline.evaluation.answers.reading import read_answers
from pipeline.evaluation.figures import BEST_PAIR, Bootstrap, EvalReport, ResultTable, compute_report
from pipeline.evaluation.oracle import search_oracle
from pipeline.evaluation.probes.behaviour import SecondScorer, describe_behaviour
from pipeline.evaluation.probes.transfer import load_transfer_scorer
from pipeline.evaluation.query_set import hash_pools, load_query_set
from pipeline.evaluation.search.again import search_again
from pipeline.evaluation.trec import save_run, save_trec_qrels
from pipeline.evaluation.val_choices import carry_choices, choose_on_val, rank_methods
from pipeline.files.store import load_qrels, replace_dir, save_results, write_json
from pipeline.reranking.scorer import FrozenScorer
from pipeline.runs.tracking import StageRun
from pipeline.types import Query, QueryResult
from pipeline.workspace import Workspace, read_data_md5

logger = logging.getLogger(__name__)

VAL_METRICS = ("cond_recall_at_1", "harm_rate")


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Evaluate all methods and write `evaluation_dir`.

    What is left open is chosen on val, or taken over from the run whose policies this workspace borrows; test is only
    measured.

    Returns:
        The means of the methods' figures as `METHOD.METRIC`, on val as `val.METHOD.METRIC`, InfoSeek's harmonic means
        as `METHOD.infoseek_METRIC` where both of its splits are there, the difference to the best rule, and what
        searching again finds as `search.METHOD.METRIC`; a figure without value is left out.

    Raises:
        StageError: there is no test query, or a val or test query has no pool; answer has not run, or on other
            queries; a borrowed policy's own run has not been evaluated.
        ModelError: a scorer cannot be loaded.
    """
    val, test = load_query_set(workspace, "val"), load_query_set(workspace, "test")
    queries, pools = test.queries, test.pools
    scorer = FrozenScorer.load(params, workspace)
    answers = read_answers(workspace, val.queries, test.queries)
    lender = workspace.lender_report_path
    carried = None if lender is None else carry_choices(lender, answers.policy_digest)
    bootstrap = Bootstrap(params.evaluate, params.seed, val.queries)
    chosen = carried or choose_on_val(answers.val, {"rgrpo": answers.probed.list_forced("val")}, val, scorer, bootstrap)
    choices = _choose_without_policy(params, test, scorer) | answers.test
    by_method = rank_methods(choices, {"rgrpo": answers.probed.list_forced("test")}, chosen.settings, test, scorer)
    results = [row for rows in by_method.values() for row in rows]
    second = _load_second_scorer(params, workspace, test)
    logger.info("evaluate: %d rows; computing intervals", len(results))
    table = ResultTable(results, pools)
    behaviour = describe_behaviour(
        table,
        choices,
        answers.probed,
        val,
        test,
        scorer,
        second,
        params.evaluate,
        seed=params.seed,
        carried_threshold=chosen.threshold,
    )
    searched = search_again(
        params,
        workspace,
        scorer,
        answers.val,
        choices,
        by_method[chosen.best_rgrpo or "rgrpo"],
        val,
        test,
    )
    report = compute_report(
        table,
        queries,
        params.evaluate,
        seed=params.seed,
        provenance=_describe_run(params, workspace, val, test) | {"policy_digest": answers.policy_digest},
        choices=chosen.as_json(list(by_method)),
        behaviour=behaviour,
        searched=searched.sections,
    )
    with replace_dir(workspace.evaluation_dir) as folder:
        save_results(folder / "results.parquet", results)
        save_results(folder / "val_results.parquet", chosen.rows)
        write_json(folder / "report.json", report.as_json())
        save_results(folder / "search_results.parquet", [row for rows in searched.rows.values() for row in rows])
        runs = by_method | {f"search_{name}": rows for name, rows in searched.rows.items()}
        _save_runs(folder / "runs", runs, workspace, queries)
    return _record(report, workspace.evaluation_dir, run)


def _choose_without_policy(params: Params, test: m.QuerySet, scorer: FrozenScorer) -> dict[str, list[m.Choice]]:
    choices = {
        "full": m.choose_full(test.queries),
        "centre": m.choose_centre(test.queries),
        "random": m.choose_random(test.queries, params.search, params.seed),
        "oracle": search_oracle(scorer, test.pools, params.search),
    }
    # A ceiling of pointing says something only where something is known to point at.
    if any(query.target_box is not None for query in test.queries):
        choices["perfect"] = m.choose_perfect(test.queries)
    return choices


def _load_second_scorer(params: Params, workspace: Workspace, test: m.QuerySet) -> SecondScorer | None:
    name = params.second_scorer
    if name is None:
        return None
    scorer, model_type = load_transfer_scorer(name, params, workspace, test.queries, test.pools)
    return SecondScorer(name, model_type, scorer)


def _describe_run(params: Params, workspace: Workspace, val: m.QuerySet, test: m.QuerySet) -> dict[str, Any]:
    return {
        "params_sha256": params.sha256(),
        "data_md5": read_data_md5(workspace.data_dir) or _hash_tables(workspace.tables_dir),
        "pools_sha256": hash_pools(test.pools),
        "val_pools_sha256": hash_pools(val.pools),
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
    save_trec_qrels(folder / "qrels.txt", qrels)


def _record(report: EvalReport, folder: Path, run: StageRun) -> dict[str, float]:
    run.log_artifact(folder / "report.json", "evaluation")
    run.set_tags({name: str(report.provenance[name]) for name in ("data_md5", "pools_sha256", "val_pools_sha256")})
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
    on_val = {
        f"val.{method}.{metric}": values[metric]["mean"]
        for method, values in report.choices["val"]["methods"].items()
        for metric in VAL_METRICS
        if values[metric] is not None
    }
    to_best = {
        f"{BEST_PAIR}.{metric}": difference.mean
        for metric, difference in report.paired[BEST_PAIR].items()
        if difference is not None
    }
    return counts | means | scores | on_val | to_best | _list_search_means(report.searched)


def _list_search_means(sections: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{section}.{name}.{metric}": value["mean"]
        for section in ("search", "paired_search")
        for name, metrics in sections.get(section, {}).items()
        for metric, value in metrics.items()
        if value is not None
    }
