from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pipeline.core.ranking import compute_outcome
from pipeline.errors import ConfigError, StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_ids, load_outcomes, load_pools, load_qrels, load_queries, save_qrels, save_queries
from pipeline.retrieval.encoder import load_encoder
from pipeline.retrieval.index import load_index, load_vectors
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Pool, Qrel, Query
from pipeline.workspace import Workspace
from tests.tiny_models import build_corpus, build_params, build_tiny_clip


@pytest.fixture
def workspace(tmp_path: Path, tiny_clip_dir: Path) -> Workspace:
    workspace = build_corpus(tmp_path)
    index_stage.run(build_params(tiny_clip_dir), workspace, null_run())
    return workspace


def _run(
    workspace: Workspace,
    scorer_dir: Path,
    pool_size: int = 10,
    batch_size: int = 5,
    train_pools: Literal["drop", "inject"] = "drop",
) -> dict[str, float]:
    params = build_params(scorer_dir, pool_size=pool_size, batch_size=batch_size)
    retrieve = params.retrieve.model_copy(update={"train_pools": train_pools})
    return retrieve_stage.run(params.model_copy(update={"retrieve": retrieve}), workspace, null_run())


def _load_pools(workspace: Workspace) -> dict[str, Pool]:
    return {pool.query_id: pool for pool in load_pools(workspace.pools_dir / "pools.parquet")}


def _rank_all(workspace: Workspace, scorer_dir: Path) -> dict[str, Pool]:
    """Return pools of all 30 documents: how the full image ranks the whole corpus."""
    qrels = [Qrel(query_id=query.query_id, doc_id="d0") for query in _load_queries(workspace)]
    save_qrels(workspace.tables_dir / "qrels.parquet", qrels)
    _run(workspace, scorer_dir, pool_size=30)
    return _load_pools(workspace)


def _load_queries(workspace: Workspace) -> list[Query]:
    return load_queries(workspace.tables_dir / "queries.parquet")


def _set_relevant(workspace: Workspace, relevant: Mapping[str, Iterable[str]]) -> None:
    qrels = [Qrel(query_id=query_id, doc_id=doc_id) for query_id, doc_ids in relevant.items() for doc_id in doc_ids]
    save_qrels(workspace.tables_dir / "qrels.parquet", qrels)


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
    with pytest.raises(StageError, match=r"none of the \d+ training queries has a positive among its 10"):
        _run(workspace, tiny_clip_dir)
    assert not workspace.pools_dir.exists()


def test_without_training_queries_no_advice_on_pools_is_given(workspace: Workspace, tiny_clip_dir: Path) -> None:
    kept = [query for query in _load_queries(workspace) if query.split != "train"]
    save_queries(workspace.tables_dir / "queries.parquet", kept)
    with pytest.raises(StageError, match="the tables hold no training queries") as caught:
        _run(workspace, tiny_clip_dir)
    assert "pool_size" not in str(caught.value)


def test_too_large_a_pool_and_a_stale_index_are_refused(
    workspace: Workspace, tiny_clip_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"retrieve\.pool_size is 31"):
        _run(workspace, tiny_clip_dir, pool_size=31)
    with pytest.raises(StageError, match="another encoder"):
        _run(workspace, build_tiny_clip(tmp_path / "other", seed=1))


# ---------------------------------------------------------------------------- inject


@pytest.fixture
def ranked(workspace: Workspace, tiny_clip_dir: Path) -> dict[str, Pool]:
    """Pools of the whole corpus; afterwards each query's only relevant document is the one ranked last of it."""
    ranked = _rank_all(workspace, tiny_clip_dir)
    _set_relevant(workspace, {query_id: [pool.doc_ids[-1]] for query_id, pool in ranked.items()})
    return ranked


def test_injected_positive_takes_the_last_place(
    workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]
) -> None:
    figures = _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
    assert (figures["num_train_pools"], figures["num_train_injected"], figures["num_train_dropped"]) == (4, 4, 0)
    baseline = load_outcomes(workspace.pools_dir / "baseline.parquet")
    for pool in _load_pools(workspace).values():
        found = ranked[pool.query_id]
        if pool.split != "train":
            continue
        assert pool.doc_ids == (*found.doc_ids[:5], found.doc_ids[-1])
        assert pool.scores == (*found.scores[:5], found.scores[-1])
        assert pool.scores == tuple(sorted(pool.scores, reverse=True))
        assert pool.relevance == (False,) * 5 + (True,)
        assert pool.num_relevant == 1
        assert baseline[pool.query_id].first_rank == 6


def test_val_and_test_pools_are_never_touched(
    workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]
) -> None:
    figures = _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
    others = [pool for pool in _load_pools(workspace).values() if pool.split != "train"]
    assert len(others) == 8
    assert not any(pool.has_positive for pool in others)
    assert all(pool.doc_ids == ranked[pool.query_id].doc_ids[:6] for pool in others)
    assert figures["val_mrr"] == figures["test_mrr"] == 0.0


def test_of_several_positives_the_one_that_scores_highest_is_injected(
    workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]
) -> None:
    # Three that the search of six does not find, in an order that is not that of the scores.
    far = {query_id: (pool.doc_ids[20], pool.doc_ids[9], pool.doc_ids[29]) for query_id, pool in ranked.items()}
    _set_relevant(workspace, far)
    _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
    train = [pool for pool in _load_pools(workspace).values() if pool.split == "train"]
    assert len(train) == 4
    for pool in train:
        assert pool.doc_ids[-1] == ranked[pool.query_id].doc_ids[9]
        assert pool.relevance == (False,) * 5 + (True,)
        assert pool.num_relevant == 3


def test_pools_that_hold_a_positive_stay_as_they_were_found(
    workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]
) -> None:
    near = {query_id: (pool.doc_ids[3], pool.doc_ids[20]) for query_id, pool in ranked.items()}
    _set_relevant(workspace, near)
    _run(workspace, tiny_clip_dir, pool_size=6)
    dropped = _load_pools(workspace)
    figures = _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
    assert _load_pools(workspace) == dropped
    assert (figures["num_train_injected"], figures["num_train_dropped"]) == (0, 0)


def test_a_training_query_without_any_relevant_document_is_dropped(
    workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]
) -> None:
    train = [query.query_id for query in _load_queries(workspace) if query.split == "train"]
    _set_relevant(workspace, {query_id: [ranked[query_id].doc_ids[-1]] for query_id in train[1:]})
    figures = _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
    assert [name for name, pool in _load_pools(workspace).items() if pool.split == "train"] == train[1:]
    assert (figures["num_train_pools"], figures["num_train_injected"], figures["num_train_dropped"]) == (3, 3, 1)


def test_injection_is_the_same_every_time(workspace: Workspace, tiny_clip_dir: Path, ranked: dict[str, Pool]) -> None:
    assert ranked
    found = []
    for _ in range(2):
        _run(workspace, tiny_clip_dir, pool_size=6, train_pools="inject")
        found.append((workspace.pools_dir / "pools.parquet").read_bytes())
    assert found[0] == found[1]


def test_a_positive_that_the_search_missed_by_rounding_is_still_last() -> None:
    pool = Pool(
        query_id="q",
        split="train",
        doc_ids=("a", "b", "c"),
        scores=(0.5, 0.3, 0.3),
        relevance=(False,) * 3,
        num_relevant=1,
    )
    found = _Vectors({"d": 0.3 + 1e-6})
    (given,) = retrieve_stage._inject([pool], found, np.ones((1, 1), np.float32), {"q": frozenset({"d"})})  # type: ignore[arg-type]
    assert given.doc_ids == ("a", "b", "d")
    assert given.scores == (0.5, 0.3, 0.3)
    assert compute_outcome(given.scores, given.relevance, 1).first_rank == 3
    (kept,) = retrieve_stage._inject(
        [replace(pool, split="val")],
        found,  # type: ignore[arg-type]
        np.ones((1, 1), np.float32),
        {"q": frozenset({"d"})},
    )
    assert kept == replace(pool, split="val")


class _Vectors:
    """Documents of one dimension."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def get_vectors(self, doc_ids: Iterable[str]) -> np.ndarray:
        return np.array([[self._values[doc_id]] for doc_id in doc_ids], dtype=np.float32)
