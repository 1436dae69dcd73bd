from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError, StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents, save_documents
from pipeline.process.progress import track
from pipeline.retrieval.encoder import F32
from pipeline.retrieval.index import BuildFigures, DocumentIndex, build_index, hash_file, load_index, score_candidates
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.types import Document
from pipeline.workspace import Workspace
from tests.tiny_models import CountingEncoder, build_corpus, build_params


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_corpus(tmp_path)


@pytest.fixture
def documents(workspace: Workspace) -> list[Document]:
    return load_documents(workspace.tables_dir / "documents.parquet")


def _build(workspace: Workspace, documents: Sequence[Document], encoder: CountingEncoder) -> BuildFigures:
    return build_index(
        encoder,
        documents,
        PictureFolder(workspace.data_dir, 10_000),
        workspace.index_dir,
        workspace.checkpoints_dir / "index",
        table_sha256=hash_file(workspace.tables_dir / "documents.parquet"),
        batch_size=4,
        advance=lambda _: None,
        shard_size=8,
    )


def _open(workspace: Workspace) -> DocumentIndex:
    return load_index(workspace.index_dir, "fake")


def test_vector_is_mean_of_pictures_fused_with_text(workspace: Workspace, documents: list[Document]) -> None:
    encoder = CountingEncoder()
    _build(workspace, documents, encoder)
    pictures = PictureFolder(workspace.data_dir, 10_000)
    for document, vector_D in zip(documents, _open(workspace).vectors_ND, strict=True):
        wanted_D = encoder.encode_texts([f"{document.title}. {document.text}"])[0]
        if document.image_paths:
            mean_D = encoder.encode_images(pictures.load_squashed(document.image_paths, 8)).mean(axis=0)
            wanted_D = wanted_D + mean_D / np.linalg.norm(mean_D)
        np.testing.assert_allclose(vector_D, wanted_D / np.linalg.norm(wanted_D), atol=1e-5)


def test_every_document_is_embedded_once_and_rows_keep_the_table_s_order(
    workspace: Workspace, documents: list[Document]
) -> None:
    encoder = CountingEncoder()
    built = _build(workspace, documents, encoder)
    assert encoder.num_texts == built.num_documents == 30
    assert encoder.num_images == built.num_images == sum(len(document.image_paths) for document in documents)
    assert _open(workspace).doc_ids == [document.doc_id for document in documents]


def test_search_equals_brute_force(workspace: Workspace, documents: list[Document]) -> None:
    _build(workspace, documents, CountingEncoder())
    index = _open(workspace)
    queries_QD = CountingEncoder().encode_texts(["one", "two", "three"])
    scores_QK, rows_QK = index.search(queries_QD, 10)
    for query_D, scores_K, rows_K in zip(queries_QD, scores_QK, rows_QK, strict=True):
        all_scores_N = score_candidates(query_D[None], index.vectors_ND)[0]
        wanted_K = np.argsort(-all_scores_N, kind="stable")[:10]
        np.testing.assert_array_equal(rows_K, wanted_K)
        np.testing.assert_array_equal(scores_K, all_scores_N[wanted_K])


def test_equal_documents_rank_by_row(workspace: Workspace, documents: list[Document]) -> None:
    twins = [replace(documents[0], doc_id=f"twin{number}", image_paths=()) for number in range(6)]
    _build(workspace, twins, CountingEncoder())
    _, rows_QK = _open(workspace).search(CountingEncoder().encode_texts(["one"]), 6)
    assert rows_QK.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_pool_larger_than_corpus_is_a_config_error(workspace: Workspace, documents: list[Document]) -> None:
    _build(workspace, documents, CountingEncoder())
    with pytest.raises(ConfigError, match=r"31.*30"):
        _open(workspace).search(CountingEncoder().encode_texts(["one"]), 31)


def test_build_goes_on_after_a_kill(workspace: Workspace, documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _build(workspace, documents, CountingEncoder(fail_after=20))
    assert not workspace.index_dir.exists()
    second = CountingEncoder()
    built = _build(workspace, documents, second)
    assert built.num_resumed >= 8
    assert second.num_texts == 30 - built.num_resumed
    resumed_ND = np.array(_open(workspace).vectors_ND)
    _build(workspace, documents, CountingEncoder())
    np.testing.assert_array_equal(resumed_ND, _open(workspace).vectors_ND)
    assert not (workspace.checkpoints_dir / "index").exists()


@pytest.mark.parametrize("change", ["encoder", "text", "picture", "torn"])
def test_stale_shards_are_ignored(workspace: Workspace, documents: list[Document], change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        _build(workspace, documents[:16], CountingEncoder(fail_after=14))
    (shard,) = (workspace.checkpoints_dir / "index").glob("*.npy")
    encoder = CountingEncoder(digest="other" if change == "encoder" else "fake")
    if change == "text":
        documents[0] = replace(documents[0], text="Another.")
    if change == "picture":
        first, second = (workspace.data_dir / "docs" / name for name in ("1_0.png", "2_0.png"))
        first.write_bytes(second.read_bytes())
    if change == "torn":
        shard.write_bytes(shard.read_bytes()[:-8])
    assert _build(workspace, documents[:16], encoder).num_resumed == 0


def test_stale_index_is_refused(workspace: Workspace, documents: list[Document]) -> None:
    with pytest.raises(StageError, match="run index first"):
        _open(workspace)
    _build(workspace, documents, CountingEncoder())
    with pytest.raises(StageError, match="another encoder"):
        load_index(workspace.index_dir, "other")
    meta_path = workspace.index_dir / "meta.json"
    meta = json.loads(meta_path.read_text())
    meta_path.write_text(json.dumps({**meta, "count": 29}))
    with pytest.raises(StageError, match="stale"):
        _open(workspace)
    meta_path.write_text(json.dumps(meta))
    (workspace.index_dir / "vectors.npy").write_bytes(b"short")
    with pytest.raises(StageError, match="no whole array"):
        _open(workspace)


def test_unknown_document_and_missing_picture_are_named(workspace: Workspace, documents: list[Document]) -> None:
    _build(workspace, documents, CountingEncoder())
    with pytest.raises(StageError, match="nobody"):
        _open(workspace).get_vectors(["d1", "nobody"])
    (workspace.data_dir / "docs" / "1_0.png").unlink()
    with pytest.raises(DataError, match=r"1_0\.png"):
        _build(workspace, documents, CountingEncoder())
    with pytest.raises(StageError, match="no documents"):
        _build(workspace, [], CountingEncoder())


def test_stage_writes_an_index_that_its_encoder_opens(
    workspace: Workspace, tiny_clip_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    figures = index_stage.run(build_params(tiny_clip_dir), workspace, null_run())
    assert (figures["num_documents"], figures["num_images"], figures["dim"]) == (30, 30, 16)
    assert {path.name for path in workspace.index_dir.iterdir()} == {
        "vectors.npy",
        "doc_ids.parquet",
        "index.faiss",
        "meta.json",
    }


def test_progress_is_logged_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with track("index: documents", 10, interval_s=0.0) as advance:
        advance(5)
    assert "index: documents 5 of 10" in caplog.text
    assert "s left" in caplog.text


class _PictureEncoder(CountingEncoder):
    """One that knows no text."""

    def __init__(self) -> None:
        super().__init__()
        self.has_text = False

    def encode_texts(self, texts: Sequence[str]) -> F32:
        return np.zeros((len(texts), self.dim), dtype=np.float32)


def test_without_text_a_vector_is_the_mean_of_pictures_and_none_scores_zero(
    workspace: Workspace, documents: list[Document]
) -> None:
    encoder, pictures = _PictureEncoder(), PictureFolder(workspace.data_dir, 10_000)
    _build(workspace, documents, encoder)
    index = _open(workspace)
    for document, vector_D in zip(documents, index.vectors_ND, strict=True):
        if document.image_paths:
            mean_D = encoder.encode_images(pictures.load_squashed(document.image_paths, 8)).mean(axis=0)
            np.testing.assert_allclose(vector_D, mean_D / np.linalg.norm(mean_D), atol=1e-6)
        else:
            assert not vector_D.any()
    blind = [document.doc_id for document in documents if not document.image_paths]
    query_1D = encoder.encode_images([Image.new("RGB", (8, 8), "red")])
    assert not score_candidates(query_1D, index.get_vectors(blind)).any()


def test_stage_says_how_many_documents_have_no_picture(
    workspace: Workspace, documents: list[Document], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(index_stage, "load_encoder", lambda *_: _PictureEncoder())
    figures = index_stage.run(build_params(Path("planted")), workspace, null_run())
    assert figures["num_without_picture"] == sum(not document.image_paths for document in documents) == 10
    assert "10 of 30 documents have no picture" in caplog.text
    save_documents(workspace.tables_dir / "documents.parquet", [d for d in documents if not d.image_paths])
    with pytest.raises(StageError, match="10 of 10 documents have no picture, and the encoder"):
        index_stage.run(build_params(Path("planted")), workspace, null_run())
