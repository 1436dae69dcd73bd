"""The reward as the paper's public code goes about it: everything is embedded again for every completion.

The same encoder, the same pictures and the same definition of the reward as ours, so the numbers must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pipeline.config import RewardParams
from pipeline.core.ranking import compute_outcome
from pipeline.core.reward import compute_reward
from pipeline.files.images import PictureFolder, crop_view
from pipeline.retrieval.encoder import F32, Encoder, fuse, normalise
from pipeline.retrieval.index import score_candidates
from pipeline.types import Crop, Decision, Document, Malformed, Outcome, Pool, Query


class NaiveReward:
    """Scores one completion at a time and remembers nothing.

    Args:
        encoder: the frozen encoder.
        documents: doc id -> document, whose pictures and text are read and embedded at every use.
        pictures: where pictures lie.
        params: weights of the reward.
    """

    def __init__(
        self, encoder: Encoder, documents: Mapping[str, Document], pictures: PictureFolder, params: RewardParams
    ) -> None:
        self._encoder = encoder
        self._documents = documents
        self._pictures = pictures
        self._params = params

    def score(self, query: Query, pool: Pool, decision: Decision) -> float:
        """Return the reward of one completion.

        A malformed answer costs nothing, FULL costs the query and its candidates, a crop costs both twice.
        """
        if isinstance(decision, Malformed):
            return self._params.malformed
        image = self._pictures.load(query.image_path)
        baseline = self._rank(image, pool)
        view = self._rank(crop_view(image, decision.box), pool) if isinstance(decision, Crop) else None
        return compute_reward(decision, baseline, view, self._params).total

    def _rank(self, view: Image.Image, pool: Pool) -> Outcome:
        view_1D = self._encoder.encode_images([view])
        candidates_KD = self._embed([self._documents[doc_id] for doc_id in pool.doc_ids])
        return compute_outcome(score_candidates(view_1D, candidates_KD)[0], pool.relevance, pool.num_relevant)

    def _embed(self, documents: Sequence[Document]) -> F32:
        """Return (K, D): text and mean of the pictures, fused; one batch of texts, one of pictures."""
        vectors_KD = self._encoder.encode_texts([f"{document.title}. {document.text}" for document in documents])
        pictures = [self._pictures.load(path) for document in documents for path in document.image_paths]
        pictures_PD = self._encoder.encode_images(pictures)
        stops = np.cumsum([len(document.image_paths) for document in documents])
        for row, (document, stop) in enumerate(zip(documents, stops, strict=True)):
            if document.image_paths:
                own_PD = pictures_PD[stop - len(document.image_paths) : stop]
                mean_1D = normalise(own_PD.mean(axis=0, keepdims=True))
                vectors_KD[row] = fuse(mean_1D, vectors_KD[row : row + 1])[0]
        return vectors_KD
