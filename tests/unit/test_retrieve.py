from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.ranking import compute_outcome
from pipeline.errors import ConfigError, StageError
from pipeline.learn.encoder import load_encoder
from pipeline.learn.index import PictureFolder, load_index, load_vectors
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.store import load_ids, load_outcomes, load_pools, load_qrels, load_queries, save_qrels
from pipeline.tracking import null_run
from pipeline.types import Qrel
from pipeline.workspace import Workspace
from tests.tiny_models import build_corpus, build_params, build_tiny_clip


@pytest.fixture
def workspace(tmp_path: Path, tiny_clip_dir: Path) -> Workspace:
    workspace = build_corpus(tmp_path)
    index_stage.run(build_params(tiny_clip_dir), workspace, null_run())
    return workspace


def _run(workspace: Workspace, scorer_dir: Path, pool_size: int = 10, batch_size: int = 5) -> dict[str, float]:
    params = build_params(scorer_dir, pool_size=pool_size, batch_size=batch_size)
    return retrieve_stage.run(params, workspace, null_run())


def test_pools_are_the_brute_force_best_of_the_full_image(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir)
    encoder = load_encoder(build_params(tiny_clip_dir).scorer)
    index = load_index(workspace.index_dir, encoder.digest)
    queries = {query.query_id: query for query in load_queries(workspace.tables_dir / "queries.parquet")}
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    pictures = PictureFolder(workspace.data_dir, 10_000)
    for pool in pools:
        (image,) = pictures.load_squashed([queries[pool.query_id].image_path], encoder.input_size_px)
        scores_N = index.vectors_ND @ encoder.encode_images([image])[0]
        np.testing.assert_allclose(pool.scores, np.sort(scores_N)[::-1][:10], atol=1e-5)
        assert pool.scores == tuple(sorted(pool.scores, reverse=True))
        rows = [index.doc_ids.index(doc_id) for doc_id in pool.doc_ids]
        np.testing.assert_allclose(scores_N[rows], pool.scores, atol=1e-5)


def test_relevance_and_num_relevant_come_from_qrels(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir)
    qrels = {(qrel.query_id, qrel.doc_id) for qrel in load_qrels(workspace.tables_dir / "qrels.parquet")}
    for pool in load_pools(workspace.pools_dir / "pools.parquet"):
        assert pool.relevance == tuple((pool.query_id, doc_id) in qrels for doc_id in pool.doc_ids)
        assert pool.num_relevant == 2


def test_baseline_holds_the_outcome_of_every_pool(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir)
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    wanted = {pool.query_id: compute_outcome(pool.scores, pool.relevance, pool.num_relevant) for pool in pools}
    assert load_outcomes(workspace.pools_dir / "baseline.parquet") == wanted


def test_only_training_pools_need_a_positive(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir, pool_size=30)
    ranked = {pool.query_id: pool.doc_ids for pool in load_pools(workspace.pools_dir / "pools.parquet")}
    answers = {query_id: doc_ids[0 if query_id == "q0" else -1] for query_id, doc_ids in ranked.items()}
    qrels = [Qrel(query_id=query_id, doc_id=doc_id) for query_id, doc_id in answers.items()]
    save_qrels(workspace.tables_dir / "qrels.parquet", qrels)
    figures = _run(workspace, tiny_clip_dir, pool_size=6)
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    assert [pool.query_id for pool in pools if pool.split == "train"] == ["q0"]
    assert [sum(pool.split == split for pool in pools) for split in ("val", "test")] == [4, 4]
    assert (figures["num_train_pools"], figures["num_train_dropped"], figures["num_pools"]) == (1, 3, 9)
    assert figures["val_mrr"] == figures["test_recall_at_5"] == 0.0


def test_figures_are_the_full_image_s_recall_and_mrr(workspace: Workspace, tiny_clip_dir: Path) -> None:
    figures = _run(workspace, tiny_clip_dir)
    pools = load_pools(workspace.pools_dir / "pools.parquet")
    ranks = [pool.relevance.index(True) + 1 if pool.has_positive else None for pool in pools if pool.split == "val"]
    assert figures["val_mrr"] == pytest.approx(sum(1 / rank for rank in ranks if rank) / 4)
    for cutoff in (1, 5, 10):
        assert figures[f"val_recall_at_{cutoff}"] == sum(rank is not None and rank <= cutoff for rank in ranks) / 4
    assert "val_recall_at_20" not in figures
    assert not any(name.startswith("train_") for name in figures)


def test_batch_size_does_not_change_pools(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir, batch_size=1)
    one = load_pools(workspace.pools_dir / "pools.parquet")
    _run(workspace, tiny_clip_dir, batch_size=64)
    for pool, other in zip(one, load_pools(workspace.pools_dir / "pools.parquet"), strict=True):
        np.testing.assert_allclose(pool.scores, other.scores, atol=1e-5)


def test_query_vectors_lie_beside_their_ids(workspace: Workspace, tiny_clip_dir: Path) -> None:
    _run(workspace, tiny_clip_dir)
    ids = load_ids(workspace.pools_dir / "query_ids.parquet", stage="retrieve")
    vectors_QD = load_vectors(workspace.pools_dir / "query_vectors.npy", stage="retrieve")
    assert ids == [query.query_id for query in load_queries(workspace.tables_dir / "queries.parquet")]
    index = load_index(workspace.index_dir, load_encoder(build_params(tiny_clip_dir).scorer).digest)
    for pool in load_pools(workspace.pools_dir / "pools.parquet"):
        scores_K = index.get_vectors(pool.doc_ids) @ vectors_QD[ids.index(pool.query_id)]
        np.testing.assert_allclose(scores_K, pool.scores, atol=1e-5)


def test_no_training_pool_with_a_positive_stops_the_stage(workspace: Workspace, tiny_clip_dir: Path) -> None:
    queries = load_queries(workspace.tables_dir / "queries.parquet")
    val = [Qrel(query_id=query.query_id, doc_id="d1") for query in queries if query.split == "val"]
    save_qrels(workspace.tables_dir / "qrels.parquet", val)
    with pytest.raises(StageError, match="no training query has a positive"):
        _run(workspace, tiny_clip_dir)
    assert not workspace.pools_dir.exists()


def test_too_large_a_pool_and_a_stale_index_are_refused(
    workspace: Workspace, tiny_clip_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"retrieve\.pool_size is 31"):
        _run(workspace, tiny_clip_dir, pool_size=31)
    with pytest.raises(StageError, match="another encoder"):
        _run(workspace, build_tiny_clip(tmp_path / "other", seed=1))
