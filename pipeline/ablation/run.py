"""One arm of the ablations: r-GRPO from its start, once per seed, each policy asked about the test queries.

    artifacts/ablation/ARM/result.json         what was trained and each seed's figures
    artifacts/ablation/ARM/results.parquet     one row per test query and seed, and the full image's
    artifacts/ablation/ARM/curve-SEED.parquet  figures by step

What a killed arm had finished lies in artifacts/checkpoints/ablation/BASIS/ARM and is taken up by the next run:
finished seeds whole, an unfinished one from its last checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ablation.arms import Arm, apply_arm
from pipeline.ablation.basis import METRICS, SECTIONS, compute_basis, name_method
from pipeline.ablation.collapse import collapse_policy
from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.answers.asking import ask_in_batches
from pipeline.evaluation.figures import ResultTable
from pipeline.evaluation.methods import choose_full
from pipeline.evaluation.query_set import load_query_set
from pipeline.evaluation.rows import score_choices
from pipeline.files.store import (
    load_curves,
    load_results,
    read_json,
    replace_dir,
    save_curves,
    save_results,
    write_json,
    writing,
)
from pipeline.models.model_folder import compute_model_digest, resolve_model_path
from pipeline.policy.policy import load_policy
from pipeline.reranking.scorer import FrozenScorer
from pipeline.runs.tracking import StageRun, null_run
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.scorers import RewardScorer, load_reward_scorer
from pipeline.training.seeding import seed_everything
from pipeline.types import CurvePoint, Pool, Query, QueryResult
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What all seeds of an arm share: scorers and their crops, training questions, test queries."""

    workspace: Workspace
    scorer: FrozenScorer
    reward_scorer: RewardScorer
    questions: Mapping[str, str]
    queries: Sequence[Query]
    pools: Sequence[Pool]

    @classmethod
    def load(cls, params: Params, workspace: Workspace) -> Bench:
        """Open what the stages wrote.

        Raises:
            StageError: a stage has not run.
        """
        test = load_query_set(workspace, "test")
        scorer = FrozenScorer.load(params, workspace)
        reward_scorer = scorer if params.reward.on == "pool" else load_reward_scorer(params, workspace)
        return cls(
            workspace=workspace,
            scorer=scorer,
            reward_scorer=reward_scorer,
            questions={query_id: scorer.queries[query_id].question for query_id in reward_scorer.teaching_ids},
            queries=test.queries,
            pools=test.pools,
        )


def run_arm(arm: Arm, params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Train and test every seed of an arm and write its folder below `ablation_dir`.

    Returns:
        The means over the seeds of the arm's figures as `test_METRIC`: training logs some under the bare name.

    Raises:
        StageError: an earlier stage has not run, or there are fewer training pools than a step takes.
        ConfigError: the arm's parameters break a rule.
        ModelError: scorer or policy cannot be loaded.
    """
    of_seed = {seed: apply_arm(arm, params, seed) for seed in params.ablation.seeds}
    basis = compute_basis(params, workspace)
    bench = Bench.load(params, workspace)
    needed = of_seed[params.ablation.seeds[0]].train.queries_per_step
    if len(bench.questions) < needed:
        raise StageError(f"arm {arm.name} takes {needed} queries a step; {len(bench.questions)} have a positive")
    folder = workspace.checkpoints_dir / "ablation" / basis[:16] / arm.name
    start_dir, p_region = _make_start(arm, params, bench, folder)
    full_rows = score_choices("full", choose_full(bench.queries), bench.queries, bench.pools, bench.scorer)
    rows: list[QueryResult] = []
    curves: dict[int, list[CurvePoint]] = {}
    figures: dict[int, dict[str, float]] = {}
    for seed, seed_params in of_seed.items():
        seed_dir = folder / f"seed-{seed}"
        with run.open_child(f"{arm.name}, seed {seed}", seed_params) as child:
            if not seed_dir.is_dir():
                _run_seed(arm, seed_params, bench, start_dir, seed_dir)
            else:
                logger.info("ablate %s, seed %d: taken from the run before", arm.name, seed)
            curves[seed] = load_curves(seed_dir / "curve.parquet")
            seed_rows = load_results(seed_dir / "results.parquet")
            figures[seed] = compute_figures([*full_rows, *seed_rows], bench.pools, name_method(seed))
            _record(child, curves[seed], figures[seed])
        rows += seed_rows
    tree = of_seed[params.ablation.seeds[0]].model_dump(mode="json", by_alias=True)
    result = {
        "arm": arm.name,
        "basis": basis,
        "start": {"kind": arm.start, "digest": compute_model_digest(start_dir), "p_region": p_region},
        "params": {name: tree[name] for name in SECTIONS},
        "seeds": {str(seed): values for seed, values in figures.items()},
    }
    with replace_dir(workspace.ablation_dir / arm.name) as out:
        write_json(out / "result.json", result)
        save_results(out / "results.parquet", [*full_rows, *rows])
        for seed, curve in curves.items():
            save_curves(out / f"curve-{seed}.parquet", curve)
    _remove_checkpoints(workspace.checkpoints_dir / "ablation", arm.name)
    return {f"test_{name}": sum(values[name] for values in figures.values()) / len(figures) for name in METRICS}


def compute_figures(rows: Sequence[QueryResult], pools: Sequence[Pool], method: str) -> dict[str, float]:
    """Return the figures of one method's rows, as fractions; the rows hold the full image's too.

    Raises:
        StageError: no query counts for a figure.
    """
    table = ResultTable(rows, pools)
    figures = {}
    for name in METRICS:
        numerator_Q, denominator_Q = table.compute_terms(method, name)
        if not denominator_Q.sum():
            raise StageError(f"no test query counts for {name}; look at retrieve's recall")
        figures[name] = float(numerator_Q.sum() / denominator_Q.sum())
    return figures


def _make_start(arm: Arm, params: Params, bench: Bench, folder: Path) -> tuple[Path, float | None]:
    """Return the folder of the policy before r-GRPO, and its mean p(REGION) where it was made here."""
    if arm.start == "sft":
        return bench.workspace.sft_dir, None
    if arm.start == "base":
        return resolve_model_path(params.policy.path), None
    start_dir = folder / "start"
    if not start_dir.is_dir():
        policy = load_policy(bench.workspace.sft_dir, params.policy, params.batches.policy)
        p_region = collapse_policy(policy, bench.scorer)
        with replace_dir(start_dir) as made:
            policy.save_merged(made / "policy")
            write_json(made / "p_region.json", p_region)
    return start_dir / "policy", float(read_json(start_dir / "p_region.json"))


def _run_seed(arm: Arm, params: Params, bench: Bench, start_dir: Path, seed_dir: Path) -> None:
    """Train one policy, ask it about the test queries and keep rows and curve; checkpoints lie beside `seed_dir`."""
    name = f"ablate {arm.name}, seed {params.seed}"
    logger.info("%s: starts", name)
    training_dir = seed_dir.with_name(f"training-{params.seed}")
    seed_everything(params.seed)
    policy = load_policy(start_dir, params.policy, params.batches.policy)
    with writing(training_dir):
        record = train_rgrpo(
            policy,
            bench.questions,
            bench.reward_scorer,
            params.train,
            params.reward,
            seed=params.seed,
            log=null_run().log_metrics,
            checkpoints_dir=training_dir,
        )
    answers = ask_in_batches(policy.decide, bench.queries, bench.workspace.data_dir, params, label=f"{name}: test")
    choices = [(answer.decision, answer.completion) for answer in answers]
    rows = score_choices(name_method(params.seed), choices, bench.queries, bench.pools, bench.scorer)
    with replace_dir(seed_dir) as folder:
        save_results(folder / "results.parquet", rows)
        save_curves(folder / "curve.parquet", record.curve)
    shutil.rmtree(training_dir, ignore_errors=True)
    logger.info("%s: done", name)


def _remove_checkpoints(folder: Path, arm_name: str) -> None:
    """Remove what an arm left for its resume, under parameters of earlier runs too."""
    for done in folder.glob(f"*/{arm_name}"):
        shutil.rmtree(done, ignore_errors=True)
        if not any(done.parent.iterdir()):
            done.parent.rmdir()


def _record(child: StageRun, curve: Sequence[CurvePoint], figures: Mapping[str, float]) -> None:
    by_step: dict[int, dict[str, float]] = {}
    for point in curve:
        by_step.setdefault(point.step, {})[point.metric] = point.value
    for step, values in by_step.items():
        child.log_metrics(values, step)
    child.log_metrics({f"test_{name}": value for name, value in figures.items()})
