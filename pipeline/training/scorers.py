"""What a view is worth in training: its rank in the full image's pool, or in the whole index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from PIL import Image

from pipeline.config import Params
from pipeline.files.store import load_pools, load_qrels, load_queries
from pipeline.reranking.scorer import FrozenScorer
from pipeline.retrieval.relevance import collect_relevant
from pipeline.retrieval.search import SearchScorer
from pipeline.retrieval.views import NamedView
from pipeline.types import Outcome, Query
from pipeline.workspace import Workspace


class RankedView(Protocol):
    """How one view ranks the candidates."""

    @property
    def outcome(self) -> Outcome:
        """Ranks, NDCG and margin."""


class RewardScorer(Protocol):
    """The part of a frozen scorer that training needs."""

    @property
    def queries(self) -> Mapping[str, Query]:
        """Query id -> query."""

    @property
    def teaching_ids(self) -> list[str]:
        """Training queries in which some view can rank a relevant document, in order of their ids."""

    @property
    def num_encoded(self) -> int:
        """Pictures that have gone through the encoder so far."""

    def load_image(self, query_id: str) -> Image.Image:
        """Return the query's picture, upright."""

    def get_baseline(self, query_id: str) -> RankedView:
        """Return how the full image ranks the candidates."""

    def score_views(self, views: Sequence[NamedView]) -> Sequence[RankedView]:
        """Return how each view ranks its query's candidates; no box is the full image."""


def load_reward_scorer(params: Params, workspace: Workspace) -> RewardScorer:
    """Open the scorer that `reward.on` names.

    Raises:
        StageError: index or retrieve has not run, or ran with another encoder or other documents.
        ModelError: the encoder cannot be loaded.
    """
    kind = SearchScorer if params.reward.on == "search" else FrozenScorer
    return kind.load(params, workspace)


def load_asked(params: Params, workspace: Workspace) -> list[Query]:
    """Return the queries, of all splits, whose pictures policies will be shown.

    Raises:
        StageError: prepare or retrieve has not run.
    """
    if params.reward.on == "search":
        teaching = set(collect_relevant(load_qrels(workspace.tables_dir / "qrels.parquet")))
    else:
        teaching = {pool.query_id for pool in load_pools(workspace.pools_dir / "pools.parquet")}
    queries = load_queries(workspace.tables_dir / "queries.parquet")
    return [query for query in queries if query.split != "train" or query.query_id in teaching]
