"""Labels of the warm-up: region search finds the planted box; the policy's own boxes count only where they gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from pipeline.config import RewardParams
from pipeline.core.boxes import compute_iou
from pipeline.errors import StageError
from pipeline.learn.labelling import label_own_boxes, search_labels
from pipeline.learn.policy import PolicyAnswer
from pipeline.types import Box, Crop, Decision, Malformed, Outcome
from tests.tiny_models import PlantedScorer, build_outcome
from tests.unit.planted import GRID, PLANTED, QUESTIONS, SEARCH, build_scorer


def test_search_finds_the_planted_box() -> None:
    done: list[int] = []
    query_ids = list(QUESTIONS)
    scorer: Any = build_scorer()
    labels = search_labels(scorer, query_ids, SEARCH, RewardParams(), done.append, chunk_size=4)
    assert [label.query_id for label in labels] == query_ids
    assert done == [4, 2]
    for label in labels:
        assert label.box == PLANTED[label.query_id]
        assert label.gain == pytest.approx(RewardParams().scale * RewardParams().weight_margin)


def test_second_pass_goes_beyond_the_grid() -> None:
    between = Box(0.35, 0.3, 0.75, 0.7)
    assert between not in GRID

    def score_box(_query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=compute_iou(box, between))

    scorer: Any = PlantedScorer(QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    label = search_labels(scorer, ["train0"], SEARCH, RewardParams(), lambda _: None)[0]
    assert label.box is not None
    assert compute_iou(label.box, between) > max(compute_iou(box, between) for box in GRID)


def test_small_gain_keeps_the_full_image() -> None:
    scorer: Any = build_scorer(top_margin=0.02)
    labels = search_labels(scorer, list(QUESTIONS), SEARCH, RewardParams(), lambda _: None)
    assert all(label.box is None for label in labels)
    assert all(0.0 < label.gain < SEARCH.min_gain for label in labels)
    eager = SEARCH.model_copy(update={"min_gain": 0.01})
    labels = search_labels(scorer, list(QUESTIONS), eager, RewardParams(), lambda _: None)
    assert all(label.box is not None for label in labels)


class _OwnBoxes:
    """Answers every query with a decision of its own, REGION forced or not."""

    batch_size = 4

    def __init__(self, decisions: dict[str, Decision]) -> None:
        self._decisions = {QUESTIONS[query_id]: decision for query_id, decision in decisions.items()}

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool
    ) -> list[PolicyAnswer]:
        assert force_region
        assert len(images) == len(questions) <= 4
        return [PolicyAnswer(self._decisions[question], "", 0.5) for question in questions]


def test_own_box_is_the_label_where_it_gains() -> None:
    # Shifted: the search would find a better box, but not one that the policy knows.
    own = {query_id: Crop(Box(box.x0, box.y0, box.x1, (box.y0 + box.y1) / 2)) for query_id, box in PLANTED.items()}
    done: list[int] = []
    scorer: Any = build_scorer()
    policy: Any = _OwnBoxes(own)
    labels = label_own_boxes(policy, scorer, list(QUESTIONS), SEARCH, RewardParams(), done.append)
    assert {label.query_id: label.box for label in labels} == {query_id: crop.box for query_id, crop in own.items()}
    assert [label.query_id for label in labels] == list(QUESTIONS)
    assert all(
        label.gain == pytest.approx(0.5 * RewardParams().scale * RewardParams().weight_margin) for label in labels
    )
    assert done == [4, 2]


def test_query_that_only_the_search_could_win_is_left_out() -> None:
    decisions: dict[str, Decision] = {query_id: Crop(box) for query_id, box in PLANTED.items()}
    decisions["train1"] = Malformed("nothing said")
    decisions["train2"] = Crop(Box(0.99, 0.99, 1.0, 1.0))
    scorer: Any = build_scorer()
    policy: Any = _OwnBoxes(decisions)
    labels = label_own_boxes(policy, scorer, list(QUESTIONS), SEARCH, RewardParams(), lambda _: None)
    assert [label.query_id for label in labels] == ["train0", "train3", "train4", "val0"]


def test_full_is_the_label_where_no_crop_gains() -> None:
    def score_box(query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=1.0 if query_id == "train0" and box == PLANTED["train0"] else 0.0)

    scorer: Any = PlantedScorer(QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    policy: Any = _OwnBoxes({query_id: Crop(box) for query_id, box in PLANTED.items()})
    labels = label_own_boxes(policy, scorer, list(QUESTIONS), SEARCH, RewardParams(), lambda _: None)
    assert {label.query_id for label in labels if label.box is not None} == {"train0"}
    assert len(labels) == len(QUESTIONS)


def test_policy_that_cannot_point_is_told_so() -> None:
    scorer: Any = build_scorer()
    policy: Any = _OwnBoxes(dict.fromkeys(QUESTIONS, Malformed("nothing said")))
    with pytest.raises(StageError, match=r"set warmup\.labels to region_search"):
        label_own_boxes(policy, scorer, list(QUESTIONS), SEARCH, RewardParams(), lambda _: None)
