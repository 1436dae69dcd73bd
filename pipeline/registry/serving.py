"""The registered model: question and image in; decision, box and ranking out (MLflow models-from-code).

MLflow runs this file when a version is logged and again when it is loaded, so nothing heavy is imported at
the top. Input columns: `image`, `question`, and optionally `candidates` (document ids to rank; else the best of
the whole index by the full image). `image` is the content of a picture file: bytes, or base64 with or without a
header `data:image/...;base64,`; never a path, by which whoever asks could read the server's files. Output columns:
`decision` (region, full or malformed), `box` (x0, y0, x1, y1 as fractions, or null), `doc_ids` best first,
and their `scores`. A malformed answer is ranked by the full image here, since somebody waits for an answer;
evaluation counts a miss.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlflow
import pandas as pd  # MLflow reads the annotations of `predict`, and warns of a name that it does not find
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.config import load_params
from pipeline.core.inputs.texts import find_question_fault, unify_line_ends
from pipeline.errors import DataError
from pipeline.types import Box, Crop, KeepFull

if TYPE_CHECKING:
    from PIL.Image import Image

_REQUEST: Final = "model input"


class RegionReranker(PythonModel):
    """Policy, frozen scorer and document index of one registered version."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights and the index that were stored with the version."""
        from pipeline.policy.policy import load_policy
        from pipeline.retrieval.encoder import load_encoder
        from pipeline.retrieval.index import load_index

        folders = {name: Path(path) for name, path in context.artifacts.items()}
        self._params = load_params(folders["params"])
        self._policy = load_policy(folders["policy"], self._params.policy, self._params.batches.policy)
        scorer = self._params.scorer.model_copy(update={"path": str(folders["scorer"])})
        self._encoder = load_encoder(scorer, self._params.batches.scorer)
        self._index = load_index(folders["index"], self._encoder.digest)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Decide on a view for each row and rank its candidates by it.

        Raises:
            DataError: a question cannot be asked, or an image is no picture; it names the row.
            ModelError: the policy reads no picture of that shape.
            StageError: a candidate is not in the index.
        """
        max_pixels = self._params.data.max_image_pixels
        longest = self._params.data.max_question_chars
        questions = [_check_question(text, row, longest) for row, text in enumerate(model_input["question"], start=1)]
        images = [_load_image(source, row, max_pixels) for row, source in enumerate(model_input["image"], start=1)]
        answers = self._policy.decide(images, questions)
        given = model_input["candidates"] if "candidates" in model_input else [None] * len(images)
        rows = []
        for image, answer, candidates in zip(images, answers, given, strict=True):
            decision = answer.decision
            box = decision.box if isinstance(decision, Crop) else None
            doc_ids, scores = self._rank(image, box, None if candidates is None else [str(c) for c in candidates])
            rows.append(
                {
                    "decision": "region" if box else "full" if isinstance(decision, KeepFull) else "malformed",
                    "box": list(box.as_tuple()) if box else None,
                    "doc_ids": doc_ids,
                    "scores": scores,
                }
            )
        return pd.DataFrame(rows, columns=["decision", "box", "doc_ids", "scores"])

    def _rank(self, image: Image, box: Box | None, candidates: Sequence[str] | None) -> tuple[list[str], list[float]]:
        from pipeline.core.ranking import rank_candidates
        from pipeline.files.images import crop_view
        from pipeline.retrieval.index import score_candidates

        side_px = self._encoder.input_size_px
        if not candidates:
            full_1D = self._encoder.encode_images([image])
            k = min(self._params.retrieve.pool_size, len(self._index))
            candidates = [self._index.doc_ids[row] for row in self._index.search(full_1D, k)[1][0]]
        view_1D = self._encoder.encode_images([crop_view(image, box, (side_px, side_px))])
        scores_K = score_candidates(view_1D, self._index.get_vectors(candidates))[0]
        order_K = rank_candidates(scores_K)
        return [candidates[k] for k in order_K], [float(scores_K[k]) for k in order_K]


def _check_question(question: object, row: int, max_chars: int) -> str:
    text = unify_line_ends(str(question))
    if (fault := find_question_fault(text, max_chars)) is not None:  # as in prepare
        raise DataError(f"`question` {fault[1]}", path=_REQUEST, row=row)
    return text


def _load_image(source: object, row: int, max_pixels: int) -> Image:
    """Decode a picture from its file's content; a path is refused, for it would be one of the server's."""
    from pipeline.files.images import ImageError, load_upright

    content = source if isinstance(source, bytes) else _decode_text(source, row)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        try:
            return load_upright(path, max_pixels=max_pixels, root=path.parent)
        except ImageError as error:
            raise DataError(f"`image` {error.reason}", path=_REQUEST, row=row) from error


def _decode_text(source: object, row: int) -> bytes:
    text = str(source)
    header, comma, payload = text.partition(",")
    if comma and header.startswith("data:") and header.endswith(";base64"):
        text = payload
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DataError("`image` is no picture file's content in base64", path=_REQUEST, row=row) from error


mlflow.models.set_model(RegionReranker())
