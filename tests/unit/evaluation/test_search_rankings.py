"""What a view's search brings, alone or merged with the full image's pool, against a naive search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.boxes import box_to_px
from pipeline.core.metrics import compute_ndcg
from pipeline.core.region_search import Reshaping
from pipeline.evaluation.methods import Choice, QuerySet
from pipeline.evaluation.query_set import load_query_set
from pipeline.evaluation.search.rankings import RRF, Searcher, SearchSetting
from pipeline.files.images import load_upright
from pipeline.files.store import load_qrels
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval.index import DocumentIndex, score_candidates
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.retrieved import FullImages
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Box, Crop, KeepFull, Malformed, Pool, Query
from pipeline.workspace import Workspace
from tests.tiny_models import CountingEncoder, build_corpus, build_params

_K = 4
_NUM_DOCUMENTS = 30
_BOX = Box(0.1, 0.2, 0.6, 0.7)
_SETTINGS = (
    SearchSetting(),
    SearchSetting(margin=0.2),
    SearchSetting(margin=0.1, is_square=True),
    SearchSetting(fusion=0.3),
    SearchSetting(margin=0.1, fusion=1.0),
    SearchSetting(is_square=True, fusion=RRF),
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = build_corpus(tmp_path_factory.mktemp("again"), num_documents=_NUM_DOCUMENTS)
    params, encoder = build_params(Path("planted"), pool_size=_K), CountingEncoder()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (index_stage, retrieve_stage):
            patch.setattr(stage, "load_encoder", lambda *_: encoder)
            stage.run(params, workspace, null_run())
    return workspace


class Corpus:
    """A searcher on the small corpus, and all that a naive reader of it needs."""

    def __init__(self, workspace: Workspace, num_candidates: int) -> None:
        self.encoder = CountingEncoder()
        self.scorer = FrozenScorer.load(build_params(Path("planted")), workspace, encoder=self.encoder)
        self.relevant = collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet"))
        index: Any = self.scorer.documents
        self.index: DocumentIndex = index
        self.full = FullImages.load(workspace.pools_dir)
        self.searcher = Searcher(self.scorer.views, index, self.full, self.relevant, num_candidates)
        self.test = load_query_set(workspace, "test")
        self._data_dir = workspace.data_dir

    def score_all(self, query: Query, box: Box | None) -> dict[str, float]:
        """Return the score of every document, naively."""
        if box is None:
            vector_1D = self.full.get_vectors([query.query_id])
        else:
            image = load_upright(self._data_dir / query.image_path, max_pixels=10_000, root=self._data_dir)
            crop = image.crop(box_to_px(box, image.width, image.height)).resize((8, 8))
            vector_1D = CountingEncoder().encode_images([crop])
        scores_N = score_candidates(vector_1D, np.asarray(self.index.vectors_ND))[0]
        return dict(zip(self.index.doc_ids, map(float, scores_N), strict=True))


@pytest.fixture
def corpus(workspace: Workspace) -> Corpus:
    return Corpus(workspace, _K)


def _best(scores: Mapping[str, float], k: int) -> list[str]:
    """Return the ids of the K highest scores; of equals the first."""
    return sorted(scores, key=lambda doc_id: -scores[doc_id])[:k]


def _find_naively(corpus: Corpus, query: Query, box: Box | None, setting: SearchSetting, k: int) -> list[str]:
    full = corpus.score_all(query, None)
    by_full = _best(full, k)
    if box is None:
        return by_full
    view = corpus.score_all(
        query, Reshaping(setting.margin, setting.is_square).apply(box, query.width_px, query.height_px)
    )
    by_view = _best(view, k)
    if setting.fusion is None:
        return by_view
    merged = list(dict.fromkeys([*by_full, *by_view]))
    if setting.fusion == RRF:
        ranks = {d: [order.index(d) + 1 for order in (by_full, by_view) if d in order] for d in merged}
        return _best({d: sum(1.0 / (60 + rank) for rank in ranks[d]) for d in merged}, k)
    weight = float(setting.fusion)
    return _best({d: weight * view[d] + (1 - weight) * full[d] for d in merged}, k)


def _crop_all(test: QuerySet, box: Box = _BOX) -> list[Choice]:
    return [(Crop(box), "said") for _ in test.queries]


@pytest.mark.parametrize("setting", _SETTINGS, ids=str)
@pytest.mark.parametrize("k", [2, _K, 7, _NUM_DOCUMENTS + 5], ids="K = {}".format)
def test_rows_equal_a_naive_search(workspace: Workspace, setting: SearchSetting, k: int) -> None:
    """K below, at and above the pool's size, and above the corpus."""
    corpus = Corpus(workspace, k)
    decisions: list[Choice] = [(Crop(_BOX), "said"), (KeepFull(), None), (Crop(Box(0.3, 0.0, 1.0, 0.5)), None)]
    asked = [decisions[row % 3] for row in range(len(corpus.test.queries))]
    rows = corpus.searcher.rank("some", asked, corpus.test, setting)
    for row, query, (decision, completion) in zip(rows, corpus.test.queries, asked, strict=True):
        box = decision.box if isinstance(decision, Crop) else None
        wanted = _find_naively(corpus, query, box, setting, min(k, _NUM_DOCUMENTS))
        assert list(row.doc_ids) == wanted
        answers = [doc_id in corpus.relevant[query.query_id] for doc_id in wanted]
        assert row.first_rank == (answers.index(True) + 1 if any(answers) else None)
        assert row.ndcg == pytest.approx(compute_ndcg(answers, len(corpus.relevant[query.query_id])))
        assert (row.method, row.completion) == ("some", completion)
        assert row.decision == ("full" if box is None else "region")
        assert list(row.scores) == sorted(row.scores, reverse=True)


def test_the_box_in_a_row_is_the_one_that_was_cut(corpus: Corpus) -> None:
    shape = Reshaping(0.1, is_square=True)
    rows = corpus.searcher.rank("some", _crop_all(corpus.test), corpus.test, SearchSetting(margin=0.1, is_square=True))
    assert {row.box for row in rows} == {shape.apply(_BOX, 40, 30)}


def test_keeping_the_full_image_costs_no_search(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DocumentIndex, "search", pytest.fail)
    whole = Crop(Box(0.0, 0.0, 1.0, 0.9999))
    asked: list[Choice] = [(KeepFull() if row % 2 else whole, None) for row in range(len(corpus.test.queries))]
    rows = corpus.searcher.rank("some", asked, corpus.test, SearchSetting(fusion=0.5))
    assert corpus.encoder.num_images == 0
    assert [row.doc_ids for row in rows] == [pool.doc_ids for pool in corpus.test.pools]
    assert {row.decision for row in rows} == {"full", "region"}


def test_a_malformed_answer_finds_nothing(corpus: Corpus) -> None:
    asked: list[Choice] = [(Malformed("x"), "?") for _ in corpus.test.queries]
    for row in corpus.searcher.rank("some", asked, corpus.test, SearchSetting(fusion=RRF)):
        assert (row.decision, row.doc_ids, row.first_rank, row.reciprocal_rank) == ("malformed", (), None, 0.0)
    assert corpus.encoder.num_images == 0


def test_a_crop_is_embedded_and_searched_with_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    search = DocumentIndex.search

    def note(index: DocumentIndex, queries_QD: np.ndarray, k: int) -> object:
        searches.append(len(queries_QD))
        return search(index, queries_QD, k)

    monkeypatch.setattr(DocumentIndex, "search", note)
    for setting in (SearchSetting(), SearchSetting(fusion=0.5), SearchSetting(fusion=RRF)):
        corpus.searcher.rank("some", _crop_all(corpus.test), corpus.test, setting)
    assert searches == [len(corpus.test.queries)]
    assert corpus.encoder.num_images == len(corpus.test.queries)


def test_a_crop_that_the_scorer_has_seen_is_not_embedded_again(corpus: Corpus) -> None:
    corpus.scorer.score_views([(query.query_id, _BOX) for query in corpus.test.queries])
    before = corpus.encoder.num_images
    corpus.searcher.rank("some", _crop_all(corpus.test), corpus.test, SearchSetting())
    assert corpus.encoder.num_images == before


def test_a_query_that_nothing_answers_stays_and_finds_nothing(workspace: Workspace) -> None:
    corpus = Corpus(workspace, _K)
    nobody = corpus.test.queries[0].query_id
    corpus.relevant.pop(nobody)
    test = QuerySet(corpus.test.queries, [_forget(pool, nobody) for pool in corpus.test.pools])
    rows = corpus.searcher.rank("some", _crop_all(test), test, SearchSetting(fusion=0.5))
    assert (rows[0].first_rank, rows[0].ndcg, len(rows[0].doc_ids)) == (None, 0.0, _K)


def _forget(pool: Pool, query_id: str) -> Pool:
    if pool.query_id != query_id:
        return pool
    return replace(pool, relevance=(False,) * len(pool.doc_ids), num_relevant=0)
