"""Warm-up and r-GRPO on the view's own search: no query is left out for its pool, rewards are those of the crop cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import Params
from pipeline.core.completion import format_decision
from pipeline.core.region_search import RESHAPINGS, Reshaping
from pipeline.core.reward import compute_reward
from pipeline.errors import StageError
from pipeline.files.store import load_labels, load_pools, load_queries, load_rollouts
from pipeline.policy.policy import load_policy
from pipeline.policy.view_shape import save_view_shape
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval.search import SearchScorer
from pipeline.runs.tracking import null_run
from pipeline.stages import index, retrieve, train, warmup
from pipeline.training.scorers import load_asked, load_reward_scorer
from pipeline.types import Crop, Query
from pipeline.workspace import Workspace
from tests.conftest import TaughtLlava
from tests.tiny_models import build_corpus

_POOL_SIZE = 8


def _build_params(policy_dir: Path, scorer_dir: Path, on: str = "search") -> Params:
    return Params.model_validate(
        {
            "scorer": {"path": str(scorer_dir), "device": "cpu"},
            "policy": {"path": str(policy_dir), "device": "cpu", "max_new_tokens": 12},
            "retrieve": {"pool_size": _POOL_SIZE},
            "reward": {"on": on, "depth": 5},
            "warmup": {"num_queries": 4, "num_samples": 2, "epochs": 1, "batch_size": 2, "learning_rate": 1e-5},
            "train": {
                "max_steps": 2,
                "queries_per_step": 2,
                "group_size": 4,
                "num_region": 2,
                "num_full": 1,
                "warmup_steps": 0,
                "save_steps": 10,
            },
            "batches": {"policy": 8, "scorer": 64},
        }
    )


class Trained:
    """A workspace after train, and its training queries; some are in no pool."""

    def __init__(self, root: Path, params: Params) -> None:
        self.params = params
        self.workspace = build_corpus(root)
        for stage in (index, retrieve, warmup):
            figures = stage.run(params, self.workspace, null_run())
        self.shape = Reshaping(figures["label_margin"], bool(figures["label_is_square"]))
        self.figures = train.run(params, self.workspace, null_run())
        self.queries = {
            query.query_id: query
            for query in load_queries(self.workspace.tables_dir / "queries.parquet")
            if query.split == "train"
        }


@pytest.fixture(scope="module")
def trained(
    spoken_llava: TaughtLlava, tiny_clip_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    yield Trained(tmp_path_factory.mktemp("trained"), _build_params(spoken_llava.folder, tiny_clip_dir))


def _list_pooled(workspace: Workspace) -> set[str]:
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    return {pool.query_id for pool in pools if pool.split == "train"}


def test_no_training_query_is_left_out_for_its_pool(trained: Trained) -> None:
    pooled = _list_pooled(trained.workspace)
    assert pooled < trained.queries.keys()
    labels = load_labels(trained.workspace.labels_dir / "labels.parquet")
    rollouts = load_rollouts(trained.workspace.rollouts_dir / "rollouts.parquet")
    assert {label.query_id for label in labels} == {rollout.query_id for rollout in rollouts} == set(trained.queries)
    assert trained.figures["num_train_queries"] == len(trained.queries)


def test_rewards_are_those_of_the_search_with_the_crop_that_is_cut(trained: Trained) -> None:
    """Each crop is what evaluation would cut for the same words, and what the shape of the warm-up makes of the box."""
    workspace, reward = trained.workspace, trained.params.reward
    scorer = SearchScorer.load(trained.params, workspace)
    policy = load_policy(workspace.policy_dir, trained.params.policy)
    assert policy.view_shape == trained.shape
    rollouts = load_rollouts(workspace.rollouts_dir / "rollouts.parquet")
    assert any(rollout.box for rollout in rollouts)
    for rollout in rollouts:
        query = trained.queries[rollout.query_id]
        decision = policy.read(rollout.completion, query.width_px, query.height_px)
        assert rollout.box == (decision.box if isinstance(decision, Crop) else None)
        full, view = scorer.score_views([(query.query_id, None), (query.query_id, rollout.box)])
        earned = compute_reward(decision, full.outcome, view.outcome, reward).total
        assert rollout.reward == pytest.approx(earned, abs=1e-5)


def test_labels_are_boxes_as_they_are_said(trained: Trained) -> None:
    """Taught the boxes themselves; the shape around them is one for all, and comes on top wherever a crop is cut."""
    assert trained.shape in RESHAPINGS
    policy = load_policy(trained.workspace.sft_dir, trained.params.policy)
    labels = load_labels(trained.workspace.labels_dir / "labels.parquet")
    boxes = [(trained.queries[label.query_id], label.box) for label in labels if label.box is not None]
    assert boxes
    for query, box in boxes:
        size_px = (query.width_px, query.height_px)
        said = format_decision(Crop(box), policy.get_frame(*size_px))
        assert policy.read(said, *size_px) == Crop(trained.shape.apply(box, *size_px))


def test_a_base_with_a_shape_of_its_own_is_labelled_without_it(
    trained: Trained, spoken_llava: TaughtLlava, tiny_clip_dir: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(spoken_llava.folder, tmp_path / "base"))
    save_view_shape(Reshaping(0.3, is_square=True), base)
    workspace = Workspace.at(tmp_path)
    shutil.copytree(trained.workspace.data_dir, workspace.data_dir)
    for name in ("tables_dir", "index_dir", "pools_dir"):
        shutil.copytree(getattr(trained.workspace, name), getattr(workspace, name))
    warmup.run(_build_params(base, tiny_clip_dir), workspace, null_run())
    mine, others = (load_labels(w.labels_dir / "labels.parquet") for w in (workspace, trained.workspace))
    assert mine == others
    assert load_policy(workspace.sft_dir, trained.params.policy).view_shape == trained.shape


def test_what_a_view_ranks_is_named_by_the_parameters(trained: Trained) -> None:
    on_pool = trained.params.model_copy(update={"reward": trained.params.reward.model_copy(update={"on": "pool"})})
    pool, search = (load_reward_scorer(params, trained.workspace) for params in (on_pool, trained.params))
    assert isinstance(pool, FrozenScorer) and isinstance(search, SearchScorer)
    assert pool.teaching_ids == sorted(_list_pooled(trained.workspace))
    assert search.teaching_ids == sorted(trained.queries)


def test_pictures_of_all_that_teaches_are_looked_at_first(trained: Trained) -> None:
    def list_train(on: str) -> set[str]:
        reward = trained.params.reward.model_copy(update={"on": on})
        asked: list[Query] = load_asked(trained.params.model_copy(update={"reward": reward}), trained.workspace)
        assert {"val", "test"} <= {query.split for query in asked}
        return {query.query_id for query in asked if query.split == "train"}

    assert list_train("search") == set(trained.queries)
    assert list_train("pool") == _list_pooled(trained.workspace)


def test_checkpoints_are_of_these_judgements(trained: Trained) -> None:
    """A search may be won by a document that is in no pool, so that pools do not tell which answer."""
    path = trained.workspace.tables_dir / "qrels.parquet"
    before, content = train._name_run(trained.params, trained.workspace), path.read_bytes()
    path.write_bytes(content + b" ")
    after = train._name_run(trained.params, trained.workspace)
    path.write_bytes(content)
    assert before != after
    assert train._name_run(trained.params, trained.workspace) == before


def test_too_few_queries_are_told(trained: Trained) -> None:
    section = trained.params.train.model_copy(update={"queries_per_step": 5})
    with pytest.raises(StageError, match="4 training queries have a relevant document to rank"):
        train.run(trained.params.model_copy(update={"train": section}), trained.workspace, null_run())
