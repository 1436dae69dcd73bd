"""EchoSight's FAISS folder: taken only if it fits, and its pickle can run nothing."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Params
from pipeline.errors import DataError, StageError
from pipeline.files.images import PictureFolder
from pipeline.files.store import load_documents, save_ids
from pipeline.retrieval.encoder import F32, load_encoder
from pipeline.retrieval.imported_pictures import load_imported_pictures, load_positions
from pipeline.retrieval.index import load_index
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.types import Document
from pipeline.workspace import Workspace
from tests.tiny_models import CountingEncoder, build_corpus, build_params, build_tiny_clip

RAN: list[str] = []


class Exploit:
    """Would run on a plain pickle.load."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (RAN.append, ("ran",))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return build_corpus(tmp_path)


@pytest.fixture
def documents(workspace: Workspace) -> list[Document]:
    return load_documents(workspace.tables_dir / "documents.parquet")


def save_index(folder: Path, vectors_RD: F32, positions: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    index = faiss.IndexFlatIP(vectors_RD.shape[1])
    index.add(vectors_RD)
    faiss.write_index(index, str(folder / "kb_index.faiss"))
    (folder / "kb_index_ids.pkl").write_bytes(pickle.dumps(positions))
    return folder


def embed_all(encoder: CountingEncoder, workspace: Workspace, documents: list[Document]) -> tuple[F32, list[int]]:
    """Embed every picture of every document, in order, as EchoSight does."""
    pictures = PictureFolder(workspace.data_dir, 10_000)
    rows = [(place, path) for place, document in enumerate(documents) for path in document.image_paths]
    images = pictures.load_squashed([path for _, path in rows], encoder.input_size_px)
    return encoder.encode_images(images), [place for place, _ in rows]


def build_both(workspace: Workspace, documents: list[Document], clip_dir: Path, maker_dir: Path) -> Params:
    """Write the tables' order and an index that the encoder of `maker_dir` made; return parameters that import it."""
    maker = load_encoder(build_params(maker_dir).scorer)
    save_index(workspace.data_dir / "faiss", *embed_all(maker, workspace, documents))
    save_ids(workspace.tables_dir / "document_order.parquet", [document.doc_id for document in documents])
    params = build_params(clip_dir)
    data = params.data.model_copy(update={"source": "evqa", "faiss_index": "faiss"})
    return params.model_copy(update={"data": data})


def test_imported_index_equals_one_built_from_the_pictures(
    workspace: Workspace, documents: list[Document], tiny_clip_dir: Path
) -> None:
    digest = load_encoder(build_params(tiny_clip_dir).scorer).digest
    index_stage.run(build_params(tiny_clip_dir), workspace, null_run())
    built_ND = np.array(load_index(workspace.index_dir, digest).vectors_ND)
    figures = index_stage.run(build_both(workspace, documents, tiny_clip_dir, tiny_clip_dir), workspace, null_run())
    np.testing.assert_allclose(load_index(workspace.index_dir, digest).vectors_ND, built_ND, atol=1e-5)
    assert (figures["num_imported"], figures["num_images"]) == (30, 0)
    assert 0 < figures["num_spot_checked"] <= 30


def test_index_of_another_encoder_is_one_line(
    workspace: Workspace, documents: list[Document], tiny_clip_dir: Path, tmp_path: Path
) -> None:
    params = build_both(workspace, documents, tiny_clip_dir, build_tiny_clip(tmp_path / "other", seed=1))
    with pytest.raises(DataError, match="was made by another encoder") as caught:
        index_stage.run(params, workspace, null_run())
    assert "\n" not in str(caught.value)
    assert not workspace.index_dir.exists()


def test_import_needs_the_order_that_prepare_writes(
    workspace: Workspace, documents: list[Document], tiny_clip_dir: Path
) -> None:
    params = build_both(workspace, documents, tiny_clip_dir, tiny_clip_dir)
    (workspace.tables_dir / "document_order.parquet").unlink()
    with pytest.raises(StageError, match="run prepare first"):
        index_stage.run(params, workspace, null_run())


def test_index_that_cannot_be_checked_is_refused(
    workspace: Workspace, documents: list[Document], tmp_path: Path
) -> None:
    encoder = CountingEncoder()
    folder = save_index(tmp_path / "faiss", *embed_all(encoder, workspace, documents))
    imported = load_imported_pictures(folder, [document.doc_id for document in documents], encoder)
    bare = [document for document in documents if not document.image_paths]
    with pytest.raises(DataError, match="no picture of the knowledge base is at hand"):
        imported.check_against(encoder, bare, PictureFolder(workspace.data_dir, 10_000).load_squashed)


def test_rows_belong_to_entries_by_place_in_any_order(tmp_path: Path) -> None:
    vectors_RD = np.eye(12, dtype=np.float32)[:5]
    folder = save_index(tmp_path / "faiss", vectors_RD, [3, 0, 3, 1, 3])
    imported = load_imported_pictures(folder, ["a", "", "c", "d"], CountingEncoder())
    np.testing.assert_array_equal(imported.get_vectors("a"), vectors_RD[[1]])
    np.testing.assert_array_equal(imported.get_vectors("d"), vectors_RD[[0, 2, 4]])
    assert imported.get_vectors("c").shape == imported.get_vectors("nobody").shape == (0, 12)


@pytest.mark.parametrize(
    ("vectors_RD", "positions", "message"),
    [
        (np.eye(16, dtype=np.float32)[:2], [0, 1], "has 16 dimensions, the encoder 12"),
        (np.eye(12, dtype=np.float32)[:2], [0], "names 1 rows, the index has 2"),
        (np.eye(12, dtype=np.float32)[:2], [0, 4], "names entry 4, the knowledge base has 4"),
        (np.eye(12, dtype=np.float32)[:2], [-1, 0], "it is another one"),
        (2 * np.eye(12, dtype=np.float32)[:2], [0, 1], "not of unit length"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(
    tmp_path: Path, vectors_RD: F32, positions: list[int], message: str
) -> None:
    folder = save_index(tmp_path / "faiss", vectors_RD, positions)
    with pytest.raises(DataError, match=message) as caught:
        load_imported_pictures(folder, ["a", "b", "c", "d"], CountingEncoder())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no index", None])
def test_damaged_or_missing_index_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    folder = save_index(tmp_path / "faiss", np.eye(12, dtype=np.float32)[:2], [0, 1])
    path = folder / "kb_index.faiss"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"kb_index\.faiss: (is missing|is no readable FAISS index)"):
        load_imported_pictures(folder, ["a", "b"], CountingEncoder())


def test_index_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = save_index(tmp_path / "faiss", np.eye(12, dtype=np.float32)[:2], [0, 1])
    faiss.write_index(faiss.IndexFlatL2(12), str(folder / "kb_index.faiss"))
    with pytest.raises(DataError, match="must be an IndexFlatIP, is IndexFlatL2"):
        load_imported_pictures(folder, ["a", "b"], CountingEncoder())


# The pickle


@pytest.mark.parametrize(
    "value", [Exploit(), [1, Exploit()], Fraction(1, 2), {1: 2}, (1, 2), [1.0], [True], ["1"], [[1]], None, [2**70]]
)
def test_only_plain_lists_of_ints_are_read(tmp_path: Path, value: object) -> None:
    path = tmp_path / "ids.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(DataError, match=r"ids\.pkl: ") as caught:
            load_positions(path)
        assert "\n" not in str(caught.value)
    assert RAN == []


def test_numpy_array_is_no_list(tmp_path: Path) -> None:
    path = tmp_path / "ids.pkl"
    path.write_bytes(pickle.dumps(np.arange(3)))
    with pytest.raises(DataError, match="it names numpy"):
        load_positions(path)


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_lists_of_ints_come_back(tmp_path_factory: pytest.TempPathFactory, values: list[int], protocol: int) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.pkl"
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    assert load_positions(path).tolist() == values


def test_a_few_bytes_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "ids.pkl"
    path.write_bytes(b"\x80\x04]r\xff\xff\xff\x7f.")  # an empty list, remembered in place 2**31 - 1
    tracemalloc.start()
    assert load_positions(path).tolist() == []
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


@given(st.binary(max_size=40))
def test_noise_is_never_more_than_a_data_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.pkl"
    path.write_bytes(noise)
    try:
        load_positions(path)
    except DataError as error:
        assert "\n" not in str(error)
