"""Labels of the warm-up: region search finds the planted box; else labels lie near what the policy says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from pipeline.config import RewardParams, WarmupParams
from pipeline.core.boxes import compute_iou
from pipeline.core.region_search import RESHAPINGS, Reshaping
from pipeline.errors import StageError
from pipeline.policy.policy import PolicyAnswer
from pipeline.process.progress import Advance
from pipeline.training import labelling
from pipeline.training.labelling import label_neighbourhoods, search_labels
from pipeline.types import Box, Crop, Decision, Malformed, Outcome, RegionLabel
from tests.fakes.planted import GRID, PLANTED, QUESTIONS, SEARCH, build_scorer
from tests.tiny_models import PlantedScorer, build_outcome


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


# ---------------------------------------------------------------------------- near what the policy says

_REWARD = RewardParams()
_WARMUP = WarmupParams(num_samples=2, min_gain_elsewhere=0.5)
_MALFORMED = Malformed("nothing said")
_SIZE_PX = (40, 30)
"""Of the planted scorer's pictures."""
_OWN = Box(0.3, 0.4, 0.5, 0.5)
_BESIDE = Box(0.31, 0.4, 0.51, 0.5)
_ELSEWHERE = Box(0.7, 0.7, 0.9, 0.8)
SAYS: dict[str, list[Decision]] = {query_id: [Crop(_OWN), Crop(_BESIDE), Crop(_ELSEWHERE)] for query_id in QUESTIONS}
"""What the policy says with REGION forced: its likeliest region, then its draws."""


class _Speaker:
    """Says of each query what it was told to; what is drawn for one does not depend on the queries beside it."""

    def __init__(self, says: Mapping[str, Sequence[Decision]]) -> None:
        self._says = {QUESTIONS[query_id]: decisions for query_id, decisions in says.items()}

    def decide(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, force_region: bool
    ) -> list[PolicyAnswer]:
        assert force_region
        assert len(images) == len(questions)
        return [PolicyAnswer(self._says[question][0], "", 0.5) for question in questions]

    def sample_regions(
        self, images: Sequence[Image.Image], questions: Sequence[str], *, num_samples: int, **_lots: object
    ) -> list[list[PolicyAnswer]]:
        assert len(images) == len(questions)
        return [
            [PolicyAnswer(said, "", 0.5) for said in self._says[question][1 : 1 + num_samples]]
            for question in questions
        ]


class _GrowingScorer(PlantedScorer):
    """Likes boxes by how well they fit a planted one that is the policy's own, reshaped; ranks differ by query."""

    def __init__(self, liked: Mapping[str, Box], *, first_rank: int = 3, worth: float = 1.0) -> None:
        def score_box(query_id: str, box: Box) -> Outcome:
            return build_outcome(3, margin=worth * compute_iou(box, liked[query_id]))

        super().__init__(QUESTIONS, baseline=build_outcome(first_rank), score_box=score_box)


def _like(box: Box, **exceptions: Box) -> dict[str, Box]:
    return dict.fromkeys(QUESTIONS, box) | exceptions


def _label(
    scorer: PlantedScorer,
    says: Mapping[str, Sequence[Decision]] = SAYS,
    query_ids: Sequence[str] = tuple(QUESTIONS),
    advance: Advance = lambda _: None,
    **changes: float,
) -> tuple[list[RegionLabel], Reshaping]:
    policy: Any = _Speaker(says)
    planted: Any = scorer
    warmup = _WARMUP.model_copy(update=changes)
    return label_neighbourhoods(policy, planted, query_ids, warmup, _REWARD, 1, advance)


@pytest.mark.parametrize("reshaping", RESHAPINGS, ids=str)
def test_the_reshaping_that_earns_most_over_all_queries_is_taught(reshaping: Reshaping) -> None:
    done: list[int] = []
    wanted = reshaping.apply(_OWN, *_SIZE_PX)
    labels, chosen = _label(_GrowingScorer(_like(wanted)), advance=done.append)
    assert chosen == reshaping
    assert [label.query_id for label in labels] == list(QUESTIONS)
    assert all(label.box == _OWN for label in labels)  # as named: the crop takes its shape where it is cut
    assert all(label.gain == pytest.approx(_REWARD.scale * _REWARD.weight_margin) for label in labels)
    assert done == [len(QUESTIONS)]


def test_one_query_does_not_choose_a_reshaping_of_its_own() -> None:
    most, one = RESHAPINGS[2], RESHAPINGS[5]
    liked = _like(most.apply(_OWN, *_SIZE_PX), train3=one.apply(_OWN, *_SIZE_PX))
    labels, chosen = _label(_GrowingScorer(liked))
    assert chosen == most
    assert {label.box for label in labels} == {_OWN}


def test_a_draw_elsewhere_that_earns_much_more_corrects_the_policy() -> None:
    labels, _ = _label(_GrowingScorer(_like(_OWN, train2=_ELSEWHERE)))
    boxes = {label.query_id: label.box for label in labels}
    assert boxes["train2"] == _ELSEWHERE
    assert all(box == _OWN for query_id, box in boxes.items() if query_id != "train2")


def test_a_draw_elsewhere_that_earns_little_more_is_noise() -> None:
    scorer = _GrowingScorer(_like(_OWN, train2=_ELSEWHERE), worth=0.2)  # 0.4 of reward, below the 0.5 asked for
    patient, eager = (
        {label.query_id: label.box for label in _label(scorer, min_gain_elsewhere=gain)[0]} for gain in (0.5, 0.3)
    )
    assert patient["train2"] is None  # what the policy named earns no more than the full image
    assert eager["train2"] == _ELSEWHERE
    assert patient | {"train2": _ELSEWHERE} == eager


def test_a_draw_on_the_same_thing_never_replaces_the_likeliest() -> None:
    labels, _ = _label(_GrowingScorer(_like(_OWN, train2=_BESIDE)), min_gain_elsewhere=0.0)
    assert {label.box for label in labels} == {_OWN}


def test_only_draws_that_were_asked_for_can_correct() -> None:
    scorer = _GrowingScorer(_like(_OWN, train2=_ELSEWHERE))
    assert _ELSEWHERE not in {label.box for label in _label(scorer, num_samples=1)[0]}
    assert _ELSEWHERE in {label.box for label in _label(scorer, num_samples=2)[0]}


def test_full_is_the_label_where_the_full_image_earns_as_much() -> None:
    scorer = _GrowingScorer(_like(_OWN, train1=_ELSEWHERE), worth=0.1)
    labels, _ = _label(scorer, SAYS | {"train1": [Crop(_OWN)]})
    assert [label.query_id for label in labels if label.box is None] == ["train1"]
    # A first place earns FULL 1; crops lose it here, whatever their margin.
    with pytest.raises(StageError, match="gains anything"):
        _label(_GrowingScorer(_like(_OWN), first_rank=1))


def test_malformed_draws_are_left_out() -> None:
    says = {query_id: [_MALFORMED, decisions[0], _MALFORMED] for query_id, decisions in SAYS.items()}
    assert {label.box for label in _label(_GrowingScorer(_like(_OWN)), says)[0]} == {_OWN}


def test_where_the_policy_names_no_region_full_is_the_label() -> None:
    labels, _ = _label(_GrowingScorer(_like(_OWN)), SAYS | {"train3": [_MALFORMED] * 3})
    assert [(label.query_id, label.gain) for label in labels if label.box is None] == [("train3", 0.0)]


def test_policy_that_cannot_point_is_told_so() -> None:
    with pytest.raises(StageError, match=r"set warmup\.labels to region_search"):
        _label(_GrowingScorer(_like(_OWN)), dict.fromkeys(QUESTIONS, [_MALFORMED] * 3))


def test_labels_do_not_depend_on_how_queries_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = _GrowingScorer(_like(_OWN, train2=_ELSEWHERE))
    together = _label(scorer)
    monkeypatch.setattr(labelling, "_CHUNK", 2)
    assert _label(scorer) == together
