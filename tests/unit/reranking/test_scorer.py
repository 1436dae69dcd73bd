from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.boxes import box_to_px
from pipeline.core.ranking import compute_outcome
from pipeline.errors import DataError, StageError
from pipeline.files.images import PictureFolder, load_upright
from pipeline.files.store import load_outcomes, load_queries, save_queries
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval import views as views_module
from pipeline.retrieval.encoder import load_encoder
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.types import Box
from pipeline.workspace import Workspace
from tests.tiny_models import CountingEncoder, build_corpus, build_params

_BOX = Box(0.1, 0.2, 0.6, 0.9)
_BOXES = (_BOX, Box(0.0, 0.0, 0.5, 0.5), Box(0.4, 0.3, 1.0, 1.0), Box(0.5, 0.5, 0.501, 0.501))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = build_corpus(tmp_path_factory.mktemp("scorer"))
    encoder = CountingEncoder()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (index_stage, retrieve_stage):
            patch.setattr(stage, "load_encoder", lambda *_: encoder)
            stage.run(build_params(Path("planted")), workspace, null_run())
    return workspace


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def scorer(workspace: Workspace, encoder: CountingEncoder) -> FrozenScorer:
    return FrozenScorer.load(build_params(Path("planted")), workspace, encoder=encoder)


def test_scores_equal_the_naive_recomputation(workspace: Workspace, scorer: FrozenScorer) -> None:
    views = [(query_id, box) for box in _BOXES for query_id in scorer.pools]
    naive = CountingEncoder()
    for (query_id, box), scored in zip(views, scorer.score_views(views), strict=True):
        query, pool = scorer.queries[query_id], scorer.pools[query_id]
        path = workspace.data_dir / query.image_path
        image = load_upright(path, max_pixels=10_000, root=workspace.data_dir)
        crop = image.crop(box_to_px(box, image.width, image.height)).resize((8, 8))
        documents_KD = scorer.documents.get_vectors(pool.doc_ids)
        scores_K = documents_KD @ naive.encode_images([crop])[0]
        np.testing.assert_allclose(scored.scores_K, scores_K, atol=1e-5)
        wanted = compute_outcome(scored.scores_K, pool.relevance, pool.num_relevant)
        assert scored.outcome == wanted


def test_a_crop_is_encoded_once(scorer: FrozenScorer, encoder: CountingEncoder) -> None:
    query_id, other_id, *_ = scorer.pools
    nearly = Box(_BOX.x0 + 1e-4, *_BOX.as_tuple()[1:])
    first = scorer.score_views([(query_id, _BOX), (query_id, nearly), (query_id, _BOX)])
    assert encoder.num_images == scorer.num_encoded == 1
    assert first[0] is first[1] is first[2]
    again = scorer.score_views([(other_id, _BOX), (query_id, _BOX)])
    assert encoder.num_images == scorer.num_encoded == 2
    assert again[1] is first[0]


def test_candidates_are_never_embedded(scorer: FrozenScorer, encoder: CountingEncoder) -> None:
    scorer.score_views([(query_id, box) for query_id in scorer.pools for box in _BOXES])
    assert encoder.num_texts == 0
    assert encoder.num_images == len(scorer.pools) * len(_BOXES)


def test_the_full_image_is_never_encoded(workspace: Workspace, scorer: FrozenScorer, encoder: CountingEncoder) -> None:
    baseline = load_outcomes(workspace.pools_dir / "baseline.parquet")
    whole = Box(0.0, 0.0, 1.0, 0.9999)
    for query_id, pool in scorer.pools.items():
        for scored in [
            scorer.get_baseline(query_id),
            *scorer.score_views([(query_id, None), (query_id, whole)]),
        ]:
            assert scored.outcome == baseline[query_id]
            np.testing.assert_array_equal(scored.scores_K, pool.scores)
    assert encoder.num_images == scorer.num_encoded == 0


def test_results_come_in_the_order_of_the_views(scorer: FrozenScorer, workspace: Workspace) -> None:
    views = [(query_id, box) for box in (*_BOXES, None) for query_id in scorer.pools]
    mixed = [views[row] for row in np.random.default_rng(0).permutation(len(views))]
    together = scorer.score_views(mixed)
    alone = FrozenScorer.load(build_params(Path("planted"), batch_size=1), workspace, encoder=CountingEncoder())
    for view, scored in zip(mixed, together, strict=True):
        np.testing.assert_allclose(alone.score_views([view])[0].scores_K, scored.scores_K, atol=1e-5)


def test_each_picture_is_decoded_once(scorer: FrozenScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    load = PictureFolder.load

    def count(folder: PictureFolder, image_path: str) -> object:
        decoded.append(image_path)
        return load(folder, image_path)

    monkeypatch.setattr(PictureFolder, "load", count)
    scorer.score_views([(query_id, box) for box in _BOXES for query_id in scorer.pools])
    assert sorted(decoded) == sorted({scorer.queries[query_id].image_path for query_id in scorer.pools})


def test_old_pictures_leave_the_cache(workspace: Workspace) -> None:
    folder = PictureFolder(workspace.data_dir, 10_000)
    cache = views_module._PictureCache(folder, max_pixels=2 * 40 * 30)
    first = cache.load("queries/5.png")
    cache.load("queries/6.png")
    assert cache.load("queries/5.png") is first
    cache.load("queries/7.png")
    assert list(cache._pictures) == ["queries/5.png", "queries/7.png"]


def test_cached_scores_cannot_be_changed(scorer: FrozenScorer) -> None:
    (scored,) = scorer.score_views([(next(iter(scorer.pools)), _BOX)])
    with pytest.raises(ValueError, match="read-only"):
        scored.scores_K[0] = 1.0


def test_progress_counts_every_view(scorer: FrozenScorer) -> None:
    query_id = next(iter(scorer.pools))
    reported: list[int] = []
    scorer.score_views([(query_id, _BOX), (query_id, None), (query_id, _BOX)], advance=reported.append)
    assert sum(reported) == 3


def test_a_query_without_pool_is_refused(scorer: FrozenScorer) -> None:
    with pytest.raises(KeyError, match="has no pool"):
        scorer.score_views([("nobody", None)])


def test_stale_pools_and_a_stale_index_are_refused(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="another encoder"):
        FrozenScorer.load(build_params(Path("planted")), workspace, encoder=CountingEncoder(digest="other"))
    meta_path = workspace.pools_dir / "meta.json"
    meta = meta_path.read_text()
    meta_path.write_text(json.dumps({**json.loads(meta), "documents_sha256": "other"}))
    with pytest.raises(StageError, match="run retrieve again"):
        FrozenScorer.load(build_params(Path("planted")), workspace, encoder=CountingEncoder())
    meta_path.write_text(meta)


def test_a_picture_of_another_size_than_prepare_found_is_refused(workspace: Workspace) -> None:
    path = workspace.tables_dir / "queries.parquet"
    queries = load_queries(path)
    save_queries(path, [replace(query, width_px=400) for query in queries])
    scorer = FrozenScorer.load(build_params(Path("planted")), workspace, encoder=CountingEncoder())
    save_queries(path, queries)
    with pytest.raises(DataError, match="run prepare again"):
        scorer.score_views([(next(iter(scorer.pools)), _BOX)])


def test_a_real_encoder_scores_alike_at_any_batch_size(tmp_path: Path, tiny_clip_dir: Path) -> None:
    workspace = build_corpus(tmp_path)
    params = build_params(tiny_clip_dir)
    index_stage.run(params, workspace, null_run())
    retrieve_stage.run(params, workspace, null_run())
    one, many = (
        FrozenScorer.load(build_params(tiny_clip_dir, batch_size=size), workspace, encoder=load_encoder(params.scorer))
        for size in (1, 256)
    )
    views = [(query_id, box) for query_id in one.pools for box in _BOXES]
    for left, right in zip(one.score_views(views), many.score_views(views), strict=True):
        np.testing.assert_allclose(left.scores_K, right.scores_K, atol=1e-5)
