"""One order of candidates from what two views make of them: by their scores, or by their ranks alone.

Shapes: K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating]

RRF_CONSTANT: Final = 60
"""Of Reciprocal Rank Fusion, as published (Cormack, Clarke and Büttcher, 2009)."""


def fuse_scores(view_K: Scores, full_K: Scores, weight: float) -> Scores:
    """Return `weight * view + (1 - weight) * full`; scores of one encoder, so on one scale.

    Args:
        view_K: scores of the region.
        full_K: scores of the full image, of the same candidates.
        weight: of the region, 0 to 1; at 1 the full image has no say.
    """
    return weight * view_K + (1.0 - weight) * full_K


def fuse_ranks(doc_ids_K: Sequence[str], rankings: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Return the candidates' scores by Reciprocal Rank Fusion: the sum of `1 / (60 + rank)` over the rankings.

    Args:
        doc_ids_K: the candidates.
        rankings: ids of documents, best first; one that does not hold a candidate adds nothing.
    """
    score_of = dict.fromkeys(doc_ids_K, 0.0)
    for ranking in rankings:
        for rank, doc_id in enumerate(ranking, start=1):
            if doc_id in score_of:
                score_of[doc_id] += 1.0 / (RRF_CONSTANT + rank)
    return np.array([score_of[doc_id] for doc_id in doc_ids_K])
