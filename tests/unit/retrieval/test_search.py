"""A view's own search of the whole index: the counts behind it, and the scorer that training uses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.boxes import box_to_px
from pipeline.core.ranking import compute_search_outcome
from pipeline.errors import StageError
from pipeline.files.images import load_upright
from pipeline.files.store import load_qrels, load_queries, save_ids, save_qrels, save_queries
from pipeline.retrieval import search as search_module
from pipeline.retrieval import views as views_module
from pipeline.retrieval.encoder import normalise
from pipeline.retrieval.index import DocumentVectors, score_candidates
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.retrieved import FullImages
from pipeline.retrieval.search import SearchScorer, count_negatives_above
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Box, Qrel
from pipeline.workspace import Workspace
from tests.tiny_models import CountingEncoder, build_corpus, build_params

_PARAMS = build_params(Path("planted"), pool_size=3)
_BOX = Box(0.1, 0.2, 0.6, 0.9)
_BOXES = (_BOX, Box(0.0, 0.0, 0.5, 0.5), Box(0.4, 0.3, 1.0, 1.0), Box(0.5, 0.5, 0.501, 0.501))
_WHOLE = Box(0.0, 0.0, 1.0, 0.9999)


@st.composite
def searches(draw):
    """Views, an index with documents that lie twice, relevant rows of each view, and how many scores fit at once."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_views, num_documents = draw(st.integers(0, 4)), draw(st.integers(1, 30))
    documents_MD = normalise(rng.normal(size=(num_documents, 5)).astype(np.float32))
    documents_MD = documents_MD[rng.integers(0, num_documents, size=num_documents)]
    positives = [rng.permutation(num_documents)[: rng.integers(1, num_documents + 1)] for _ in range(num_views)]
    vectors_ND = normalise(rng.normal(size=(num_views, 5)).astype(np.float32))
    return vectors_ND, documents_MD, positives, draw(st.integers(1, 40))


@settings(deadline=None)
@given(searches())
def test_counts_equal_those_of_a_ranking_of_every_document(search):
    vectors_ND, documents_MD, positives, at_once = search
    scores = [
        score_candidates(vector_D[None], documents_MD[rows])[0]
        for vector_D, rows in zip(vectors_ND, positives, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "_SCORES_AT_ONCE", at_once)
        above, best_N = count_negatives_above(vectors_ND, documents_MD, positives, scores)
    for row, rows in enumerate(positives):
        exact_M = score_candidates(vectors_ND[row : row + 1], documents_MD)[0]
        negatives = np.delete(exact_M, rows)
        np.testing.assert_array_equal(above[row], [(negatives > score).sum() for score in scores[row]])
        assert best_N[row] == negatives.max(initial=-np.inf)


def test_a_document_that_lies_twice_is_never_above_itself() -> None:
    """In float32 a product's last digits depend on its shape, so that a copy may seem better than the document."""
    rng = np.random.default_rng(0)
    documents_MD = normalise(rng.normal(size=(64, 512)).astype(np.float32))
    documents_MD = np.concatenate([documents_MD, documents_MD])
    vectors_ND = normalise(documents_MD[:64] + rng.normal(scale=0.05, size=(64, 512)).astype(np.float32))
    positives = [np.array([row]) for row in range(64)]
    scores = [score_candidates(vectors_ND[row : row + 1], documents_MD[rows])[0] for row, rows in enumerate(positives)]
    above, best_N = count_negatives_above(vectors_ND, documents_MD, positives, scores)
    assert [int(count) for (count,) in above] == [0] * 64
    assert best_N.tolist() == [float(score) for (score,) in scores]


# ---------------------------------------------------------------------------- the scorer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Pools of 3 of 30 documents: many hold no positive, and training queries without any are dropped from them."""
    workspace = build_corpus(tmp_path_factory.mktemp("search"))
    encoder = CountingEncoder()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (index_stage, retrieve_stage):
            patch.setattr(stage, "load_encoder", lambda *_: encoder)
            stage.run(_PARAMS, workspace, null_run())
    return workspace


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def scorer(workspace: Workspace, encoder: CountingEncoder) -> SearchScorer:
    return SearchScorer.load(_PARAMS, workspace, encoder=encoder)


@pytest.fixture
def changed_tables(workspace: Workspace) -> Iterator[Workspace]:
    """Tables that a test may change."""
    paths = [workspace.tables_dir / f"{name}.parquet" for name in ("queries", "qrels")]
    before = [path.read_bytes() for path in paths]
    yield workspace
    for path, content in zip(paths, before, strict=True):
        path.write_bytes(content)


def test_outcomes_equal_the_naive_recomputation(workspace: Workspace, scorer: SearchScorer) -> None:
    relevant = collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet"))
    views = [(query_id, box) for box in (*_BOXES, None) for query_id in scorer.queries]
    naive = CountingEncoder()
    documents = scorer._documents
    for (query_id, box), searched in zip(views, scorer.score_views(views), strict=True):
        path = workspace.data_dir / scorer.queries[query_id].image_path
        image = load_upright(path, max_pixels=10_000, root=workspace.data_dir)
        view = image if box is None else image.crop(box_to_px(box, image.width, image.height))
        scores_M = documents.vectors_ND.astype(np.float64) @ naive.encode_images([view.resize((8, 8))])[0]
        answers_M = np.array([doc_id in relevant[query_id] for doc_id in documents.doc_ids])
        above = [(scores_M[~answers_M] > score).sum() for score in scores_M[answers_M]]
        wanted = compute_search_outcome(scores_M[answers_M], above, scores_M[~answers_M].max(), 100)
        assert searched.outcome.first_rank == wanted.first_rank
        assert searched.outcome.ndcg == pytest.approx(wanted.ndcg)
        assert searched.outcome.margin == pytest.approx(wanted.margin, abs=1e-5)


def test_a_crop_is_encoded_once_and_the_full_image_never(scorer: SearchScorer, encoder: CountingEncoder) -> None:
    one, other, *_ = scorer.queries
    nearly = Box(_BOX.x0 + 1e-4, *_BOX.as_tuple()[1:])
    first = scorer.score_views([(one, _BOX), (one, nearly), (one, None), (one, _WHOLE), (one, _BOX)])
    assert encoder.num_images == scorer.num_encoded == 1
    assert first[0] is first[1] is first[4]
    assert first[2] is first[3] is scorer.get_baseline(one)
    again = scorer.score_views([(other, _BOX), (one, _BOX)])
    assert again[1] is first[0]
    assert encoder.num_images == 2
    assert encoder.num_texts == 0


def test_a_call_multiplies_once_and_only_for_what_is_new(scorer: SearchScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    count = search_module.count_negatives_above

    def note(vectors_ND: np.ndarray, *others: object) -> object:
        products.append(len(vectors_ND))
        return count(vectors_ND, *others)

    monkeypatch.setattr(search_module, "count_negatives_above", note)
    query_ids = list(scorer.queries)[:3]
    views = [(query_id, box) for query_id in query_ids for box in (None, *_BOXES)]
    scorer.score_views(views)
    assert products == [3 * 5]
    scorer.score_views(views)
    assert sum(products[1:]) == 0


def test_results_come_in_the_order_of_the_views_alone_or_together(scorer: SearchScorer, workspace: Workspace) -> None:
    views = [(query_id, box) for box in (*_BOXES, None) for query_id in scorer.queries]
    mixed = [views[row] for row in np.random.default_rng(0).permutation(len(views))]
    alone = SearchScorer.load(_PARAMS, workspace, encoder=CountingEncoder())
    for view, searched in zip(mixed, scorer.score_views(mixed), strict=True):
        (own,) = alone.score_views([view])
        assert own.outcome.first_rank == searched.outcome.first_rank
        assert own.outcome.margin == pytest.approx(searched.outcome.margin, abs=1e-5)
    assert scorer.score_views([]) == []


def test_no_training_query_is_left_out_for_its_pool(changed_tables: Workspace) -> None:
    """One without any answer teaches nothing, whatever is searched."""
    train = sorted(
        q.query_id for q in load_queries(changed_tables.tables_dir / "queries.parquet") if q.split == "train"
    )
    assert SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder()).teaching_ids == train
    path = changed_tables.tables_dir / "qrels.parquet"
    save_qrels(path, [qrel for qrel in load_qrels(path) if qrel.query_id != train[0]])
    scorer = SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder())
    assert scorer.teaching_ids == train[1:]
    with pytest.raises(StageError, match=f"no document is relevant to query {train[0]}"):
        scorer.score_views([(train[0], None)])


def test_an_answer_that_is_in_no_index_is_refused(changed_tables: Workspace) -> None:
    path = changed_tables.tables_dir / "qrels.parquet"
    save_qrels(path, [*load_qrels(path), Qrel(query_id="q0", doc_id="nowhere")])
    with pytest.raises(StageError, match="nowhere is not in the index"):
        SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder()).score_views([("q0", None)])


def test_stale_pools_an_index_of_another_encoder_and_new_queries_are_refused(changed_tables: Workspace) -> None:
    with pytest.raises(StageError, match="another encoder"):
        SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder(digest="other"))
    meta_path = changed_tables.pools_dir / "meta.json"
    meta = meta_path.read_text()
    for name in ("documents_sha256", "encoder_digest"):
        meta_path.write_text(json.dumps({**json.loads(meta), name: "other"}))
        with pytest.raises(StageError, match="run retrieve again"):
            SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder())
    meta_path.write_text(meta)
    path = changed_tables.tables_dir / "queries.parquet"
    queries = load_queries(path)
    save_queries(path, [*queries, replace(queries[0], query_id="new")])
    with pytest.raises(StageError, match="run retrieve again"):
        SearchScorer.load(_PARAMS, changed_tables, encoder=CountingEncoder())


def test_vectors_of_other_queries_than_named_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run retrieve first"):
        FullImages.load(tmp_path)
    np.save(tmp_path / "query_vectors.npy", np.zeros((2, 3), dtype=np.float32))
    save_ids(tmp_path / "query_ids.parquet", ["a", "b", "c"])
    with pytest.raises(StageError, match="2 vectors of 3 queries; run retrieve again"):
        FullImages.load(tmp_path)


def test_where_every_document_answers_the_query_there_is_no_margin(scorer: SearchScorer) -> None:
    documents = DocumentVectors(np.eye(2, 12, dtype=np.float32), ["a", "b"])
    every = SearchScorer(scorer.views, documents, scorer._full_images, {"q0": frozenset({"a", "b"})}, 5)
    outcome = every.get_baseline("q0").outcome
    assert (outcome.first_rank, outcome.ndcg, outcome.margin) == (1, 1.0, None)


def test_only_the_last_vectors_of_crops_are_kept(
    scorer: SearchScorer, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views_module, "_CACHED_VECTORS", 2 * encoder.dim)
    keys = sorted(key for box in _BOXES[:3] if (key := scorer.views.name_crop("q0", box)) is not None)
    first_ND = scorer.views.encode(keys)
    np.testing.assert_array_equal(scorer.views.encode(keys[1:]), first_ND[1:])
    assert encoder.num_images == 3
    np.testing.assert_allclose(scorer.views.encode(keys), first_ND, atol=1e-6)
    assert encoder.num_images == 4
