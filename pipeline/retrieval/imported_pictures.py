"""Picture vectors that somebody else computed: EchoSight's FAISS folder.

`kb_index.faiss` is an IndexFlatIP of unit vectors, one row a picture; `kb_index_ids.pkl` is a pickled list that
gives each row's entry as its place in the knowledge base, from 0. Which of an entry's pictures a row shows is not
recorded there (pictures without features were skipped), and is not needed here: an entry is the mean of its rows.

Shapes: R rows, P pictures, D dimensions.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from pipeline.retrieval.encoder import F32, Encoder
from pipeline.types import Document

LoadPictures = Callable[[Sequence[str], int], Sequence[Image.Image]]

INDEX_FILE: Final = "kb_index.faiss"
POSITIONS_FILE: Final = "kb_index_ids.pkl"

MAX_CHECKED_DOCUMENTS: Final = 32
MAX_CHECKED_ROWS: Final = 1024
NORM_TOLERANCE: Final = 1e-3
# EchoSight cuts pictures to their centre and computed in half precision, so its vectors are near ours, not equal;
# those of another encoder are nowhere near.
MIN_AGREEMENT: Final = 0.9

# A damaged pickle raises whatever its opcodes run into.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OSError,
    MemoryError,
    OverflowError,
)


class ImportedPictures:
    """Vectors of pictures by document; they stay on disk.

    Args:
        folder: where they came from, for messages.
        index: rows of unit vectors.
        positions_R: place of each row's entry in the knowledge base, from 0.
        document_order: document id by place; empty where the entry was rejected.
    """

    def __init__(
        self, folder: Path, index: faiss.Index, positions_R: NDArray[np.int64], document_order: Sequence[str]
    ) -> None:
        self._folder = folder
        self._index = index
        self._rows_R: NDArray[np.int64] = np.argsort(positions_R, kind="stable")
        self._starts = np.searchsorted(positions_R[self._rows_R], np.arange(len(document_order) + 1))
        self._places = {doc_id: place for place, doc_id in enumerate(document_order) if doc_id}

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def get_vectors(self, doc_id: str) -> F32:
        """Return (P, D) vectors of a document's pictures; P is 0 for one without."""
        place = self._places.get(doc_id)
        if place is None:
            return np.empty((0, self._index.d), dtype=np.float32)
        rows_P = self._rows_R[self._starts[place] : self._starts[place + 1]]
        if not len(rows_P):
            return np.empty((0, self._index.d), dtype=np.float32)
        vectors_PD: F32 = self._index.reconstruct_batch(rows_P)
        return vectors_PD

    def check_against(self, encoder: Encoder, documents: Sequence[Document], load_pictures: LoadPictures) -> int:
        """Embed pictures of some documents and compare: is this the encoder that made the index?

        Each picture is held against the rows of its document and counts by the nearest; the median must reach
        `MIN_AGREEMENT`.

        Args:
            encoder: the encoder that will embed texts and queries.
            documents: those of the tables.
            load_pictures: decodes pictures, squashed to a square of this side in pixels.

        Returns:
            how many pictures were compared.

        Raises:
            DataError: no document has both rows and a picture at hand, or the vectors differ.
        """
        both = [document for document in documents if document.image_paths and len(self.get_vectors(document.doc_id))]
        if not both:
            raise DataError(
                "cannot be checked against the encoder: no picture of the knowledge base is at hand; put a few where "
                "docs/data-format.md says",
                path=self._folder,
            )
        step = max(1, len(both) // MAX_CHECKED_DOCUMENTS)
        agreements: list[float] = []
        for document in both[::step][:MAX_CHECKED_DOCUMENTS]:
            ours_PD = encoder.encode_images(load_pictures(document.image_paths, encoder.input_size_px))
            theirs_PD = self.get_vectors(document.doc_id)
            agreements += (ours_PD @ theirs_PD.T).max(axis=1).tolist()
        median = float(np.median(agreements))
        if median < MIN_AGREEMENT:
            raise DataError(
                f"was made by another encoder than scorer.path names: the median cosine of {len(agreements)} pictures "
                f"with its rows is {median:.2f}, less than {MIN_AGREEMENT}",
                path=self._folder,
            )
        return len(agreements)


def load_imported_pictures(folder: Path, document_order: Sequence[str], encoder: Encoder) -> ImportedPictures:
    """Open EchoSight's FAISS folder and check that its parts fit one another and the encoder.

    Args:
        folder: holds both files.
        document_order: document id by place in the knowledge base; empty where the entry was rejected.
        encoder: the vectors' dimension must be its.

    Raises:
        DataError: a file is missing, damaged or not as described, or they do not fit.
    """
    index = _load_index(folder / INDEX_FILE)
    positions_R = load_positions(folder / POSITIONS_FILE)
    if index.d != encoder.dim:
        message = f"has {index.d} dimensions, the encoder {encoder.dim}: it was made by another encoder"
        raise DataError(message, path=folder / INDEX_FILE)
    if index.ntotal != len(positions_R):
        raise DataError(f"names {len(positions_R)} rows, the index has {index.ntotal}", path=folder / POSITIONS_FILE)
    if positions_R.size and not 0 <= positions_R.min() <= positions_R.max() < len(document_order):
        message = f"names entry {positions_R.max()}, the knowledge base has {len(document_order)}: it is another one"
        raise DataError(message, path=folder / POSITIONS_FILE)
    rows = np.unique(np.linspace(0, index.ntotal - 1, min(index.ntotal, MAX_CHECKED_ROWS)).astype(np.int64))
    norms = np.linalg.norm(index.reconstruct_batch(rows), axis=1) if rows.size else np.ones(1)
    if not (np.abs(norms - 1.0) < NORM_TOLERANCE).all():
        raise DataError("holds vectors that are not of unit length", path=folder / INDEX_FILE)
    return ImportedPictures(folder, index, positions_R, document_order)


def load_positions(path: Path) -> NDArray[np.int64]:
    """Read a pickled list of whole numbers and nothing else: any class in it is refused, not run.

    Raises:
        DataError: the file is missing, no pickle, or holds anything but a plain list of ints.
    """
    try:
        with path.open("rb") as stream:
            value = _PlainUnpickler(stream).load()
    except FileNotFoundError as error:
        raise DataError("is missing", path=path) from error
    except _PICKLE_ERRORS as error:
        raise DataError(f"is no plain pickled list: {' '.join(str(error).split())}", path=path) from error
    if type(value) is not list or any(type(item) is not int for item in value):
        raise DataError("must be a plain list of whole numbers", path=path)
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise DataError("holds a number beyond 64 bits", path=path) from error


class _PlainUnpickler(pickle._Unpickler):
    """Knows no class at all, so that a pickle can run nothing.

    The one in Python, because the one in C lets a few bytes ask for gigabytes (its memo is an array).
    """

    def find_class(self, module_name: str, global_name: str) -> Any:  # noqa: ANN401 - nothing is ever returned
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: object) -> Any:  # noqa: ANN401 - nothing is ever returned
        raise pickle.UnpicklingError(f"it names a foreign object {pid!r}")


def _load_index(path: Path) -> faiss.Index:
    if not path.is_file():
        raise DataError("is missing", path=path)
    try:
        index = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise DataError("is no readable FAISS index", path=path) from error
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise DataError(f"must be an IndexFlatIP, is {type(index).__name__}", path=path)
    return index
