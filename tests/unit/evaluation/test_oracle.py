"""The oracle stops at the first place: as high as an exhaustive search, for fewer crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pipeline.config import SearchParams
from pipeline.core.region_search import build_grid, refine_boxes
from pipeline.evaluation.methods import PoolRanking
from pipeline.evaluation.oracle import search_oracle
from pipeline.evaluation.rows import score_choices
from pipeline.types import Box, Crop, KeepFull, Pool
from tests.fakes.evaluation_fakes import FakeRanking, FakeScorer, FakeWorld, build_fake_world

SEARCH = SearchParams(scales=(0.3, 0.45), stride=0.5, num_refinements=2)


class CountingScorer(FakeScorer):
    """Counts the crops that it is asked about; a weak one leaves many queries unsolved."""

    num_crops = 0

    def score_views(self, views: Sequence[tuple[str, Box | None]]) -> list[FakeRanking]:
        self.num_crops += sum(box is not None for _, box in views)
        return super().score_views(views)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield build_fake_world(tmp_path_factory.mktemp("oracle"), monkeypatch, num_queries=60)


def _value(ranking: PoolRanking) -> tuple[float, float]:
    return ranking.outcome.reciprocal_rank, ranking.outcome.margin or 0.0


def _search_everything(scorer: FakeScorer, pool: Pool, search: SearchParams) -> float:
    """The highest reciprocal rank of a search that never stops early, written without regard to cost."""
    boxes: list[Box | None] = [None, *build_grid(search.scales, search.stride)]
    best = max(boxes, key=lambda box: _value(scorer.score_views([(pool.query_id, box)])[0]))
    for _ in range(search.num_refinements):
        if best is not None:
            tried = [best, *refine_boxes(best)]
            best = max(tried, key=lambda box: _value(scorer.score_views([(pool.query_id, box)])[0]))
    return scorer.score_views([(pool.query_id, best)])[0].outcome.reciprocal_rank


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6])
def test_it_ranks_as_high_as_an_exhaustive_search(world: FakeWorld, strength: float) -> None:
    scorer = FakeScorer(world.queries, world.pools, strength=strength)
    choices = search_oracle(scorer, world.pools, SEARCH)
    rows = score_choices("oracle", choices, world.queries, world.pools, scorer)
    for row, pool in zip(rows, world.pools, strict=True):
        if pool.has_positive:
            assert row.reciprocal_rank == _search_everything(scorer, pool, SEARCH), row.query_id
    firsts = sum(row.first_rank == 1 for row in rows)
    assert 0 < firsts < sum(pool.has_positive for pool in world.pools) or strength > 0.5


def test_it_asks_for_fewer_crops_than_the_whole_search(world: FakeWorld) -> None:
    scorer = CountingScorer(world.queries, world.pools, strength=2.0)
    search_oracle(scorer, world.pools, SEARCH)
    num_searched = sum(pool.has_positive and not pool.relevance[0] for pool in world.pools)
    assert 0 < scorer.num_crops < num_searched * len(build_grid(SEARCH.scales, SEARCH.stride)) / 2


def test_it_refines_as_often_as_it_is_told(world: FakeWorld) -> None:
    scorer = FakeScorer(world.queries, world.pools, strength=0.3)
    gained = []
    for num_refinements in (0, 1, 3):
        search = SEARCH.model_copy(update={"num_refinements": num_refinements})
        choices = search_oracle(scorer, world.pools, search)
        rows = score_choices("oracle", choices, world.queries, world.pools, scorer)
        gained.append(np.mean([row.reciprocal_rank for row in rows]))
    assert gained[0] < gained[1] <= gained[2]


def test_pools_that_no_view_can_help_keep_the_full_image(world: FakeWorld) -> None:
    scorer = CountingScorer(world.queries, world.pools)
    helpless = [pool for pool in world.pools if pool.relevance[0] or not pool.has_positive]
    assert helpless
    assert search_oracle(scorer, helpless, SEARCH) == [(KeepFull(), None)] * len(helpless)
    assert scorer.num_crops == 0


def test_full_image_wins_ties(world: FakeWorld) -> None:
    indifferent = FakeScorer(world.queries, world.pools, strength=0.0)
    assert not any(isinstance(choice, Crop) for choice, _ in search_oracle(indifferent, world.pools, SEARCH))
