"""Labels of the warm-up: region search finds the planted box; else labels lie near what the policy says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import RewardParams, WarmupParams
from pipeline.core.boxes import compute_iou
from pipeline.errors import StageError
from pipeline.learn import labelling
from pipeline.learn.labelling import label_neighbourhoods, search_labels
from pipeline.learn.policy import PolicyAnswer
from pipeline.progress import Advance
from pipeline.types import Box, Crop, Decision, Malformed, Outcome, RegionLabel
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


# ---------------------------------------------------------------------------- near what the policy says

_REWARD = RewardParams()
_WARMUP = WarmupParams(num_samples=3, num_neighbours=12, temperature=0.5, epochs=6)
_MALFORMED = Malformed("nothing said")


def _shrink(box: Box, share: float) -> Box:
    return Box(box.x0, box.y0, box.x0 + share * (box.x1 - box.x0), box.y0 + share * (box.y1 - box.y0))


ROOTS: dict[str, list[Decision]] = {
    query_id: [Crop(_shrink(box, share)) for share in (0.9, 0.8, 0.7, 0.6, 0.5)] for query_id, box in PLANTED.items()
}
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


class _WatchedScorer(PlantedScorer):
    """Likes the planted boxes as `build_scorer`'s does, and notes which boxes it was asked about."""

    def __init__(self, *, first_rank: int = 3) -> None:
        self.asked: dict[str, list[Box]] = {}

        def score_box(query_id: str, box: Box) -> Outcome:
            self.asked.setdefault(query_id, []).append(box)
            return build_outcome(3, margin=compute_iou(box, PLANTED[query_id]))

        super().__init__(QUESTIONS, baseline=build_outcome(first_rank), score_box=score_box)

    def earn(self, query_id: str, box: Box) -> float:
        """What a box earns over a full image that ranks alike but for the margin."""
        return _REWARD.scale * _REWARD.weight_margin * compute_iou(box, PLANTED[query_id])


def _label(
    scorer: PlantedScorer | None = None,
    says: Mapping[str, Sequence[Decision]] = ROOTS,
    query_ids: Sequence[str] = tuple(QUESTIONS),
    seed: int = 1,
    advance: Advance = lambda _: None,
    **changes: float,
) -> list[RegionLabel]:
    policy: Any = _Speaker(says)
    planted: Any = scorer or build_scorer()
    warmup = _WARMUP.model_copy(update=changes)
    return label_neighbourhoods(policy, planted, query_ids, warmup, _REWARD, seed, advance)


def _is_near(box: Box, root: Box) -> bool:
    width, height = root.x1 - root.x0, root.y1 - root.y0
    moves = np.subtract(root.as_tuple(), box.as_tuple()) / [width, height, -width, -height]
    return bool((moves > -0.1 - 1e-9).all() and (moves < 0.4 + 1e-9).all())


def test_labels_lie_near_the_policys_own_boxes() -> None:
    done: list[int] = []
    labels = _label(advance=done.append)
    assert [label.query_id for label in labels] == list(QUESTIONS) * _WARMUP.epochs
    assert done == [len(QUESTIONS)]
    for label in labels:
        said = [decision.box for decision in ROOTS[label.query_id][:4] if isinstance(decision, Crop)]
        assert label.box is not None
        assert any(_is_near(label.box, root) for root in said)
        assert label.box != PLANTED[label.query_id]  # no search has looked for it


def test_all_boxes_of_the_policy_and_as_many_neighbours_as_asked_are_tried() -> None:
    scorer = _WatchedScorer()
    _label(scorer)
    for query_id, asked in scorer.asked.items():
        said = [decision.box for decision in ROOTS[query_id][:4] if isinstance(decision, Crop)]
        assert asked[:4] == said
        assert len(asked) == len(set(asked)) == 4 + _WARMUP.num_neighbours


def test_a_box_that_is_drawn_again_is_tried_once() -> None:
    scorer = _WatchedScorer()
    _label(scorer, {query_id: decisions[:1] * 4 for query_id, decisions in ROOTS.items()})
    assert all(len(asked) == 1 + _WARMUP.num_neighbours for asked in scorer.asked.values())


def test_boxes_are_taught_in_the_shares_of_a_softmax_of_what_they_earn() -> None:
    scorer, num_epochs = _WatchedScorer(), 6000
    labels = _label(scorer, query_ids=["train1"], epochs=num_epochs)
    boxes = scorer.asked["train1"]
    powers = np.exp([scorer.earn("train1", box) / _WARMUP.temperature for box in boxes])
    counts = Counter(label.box for label in labels)
    shares = np.array([counts[box] / num_epochs for box in boxes])
    wanted = powers / powers.sum()
    np.testing.assert_allclose(shares, wanted, atol=4 * np.sqrt(wanted.max() / num_epochs))
    assert wanted.max() > 3 * wanted.min()  # or even shares would pass
    for label in labels:
        assert label.box is not None
        assert label.gain == pytest.approx(scorer.earn("train1", label.box))


def test_full_is_the_label_where_the_full_image_earns_as_much() -> None:
    # A first place earns FULL 1; crops lose it here, whatever their margin.
    scorer = _WatchedScorer(first_rank=1)
    with pytest.raises(StageError, match="gains anything"):
        _label(scorer)

    def score_box(query_id: str, box: Box) -> Outcome:
        return build_outcome(3, margin=compute_iou(box, PLANTED[query_id]) if query_id == "train2" else 0.0)

    labels = _label(PlantedScorer(QUESTIONS, baseline=build_outcome(3), score_box=score_box))
    assert {label.query_id for label in labels if label.box is not None} == {"train2"}
    assert all(label.gain == 0.0 for label in labels if label.box is None)
    assert len(labels) == len(QUESTIONS) * _WARMUP.epochs


def test_one_lucky_box_does_not_make_a_crop_pay() -> None:
    lucky = ROOTS["train0"][1]
    assert isinstance(lucky, Crop)

    def score_box(query_id: str, box: Box) -> Outcome:
        """The lucky box of 16 wins 0.2 in reward, the others lose 0.04; near the other query's all boxes win."""
        return build_outcome(3, margin=0.1 if box == lucky.box or query_id == "train1" else -0.02)

    scorer = PlantedScorer(QUESTIONS, baseline=build_outcome(3), score_box=score_box)
    warm, cold = (_label(scorer, query_ids=["train0", "train1"], temperature=t) for t in (10.0, 0.02))
    assert {label.box for label in cold if label.query_id == "train0"} == {lucky.box}
    assert {label.box for label in warm if label.query_id == "train0"} == {None}
    gains = [label.gain for label in warm if label.query_id == "train0"]
    assert gains == pytest.approx([(0.2 - 15 * 0.04) / 16] * _WARMUP.epochs, abs=1e-3)


def test_malformed_draws_are_left_out() -> None:
    scorer = _WatchedScorer()
    says = {query_id: [_MALFORMED, decisions[1], _MALFORMED] for query_id, decisions in ROOTS.items()}
    labels = _label(scorer, says)
    for label in labels:
        root = ROOTS[label.query_id][1]
        assert isinstance(root, Crop)
        assert label.box is not None
        assert _is_near(label.box, root.box)
    assert all(len(asked) == 1 + _WARMUP.num_neighbours for asked in scorer.asked.values())


def test_where_the_policy_names_no_region_full_is_the_label() -> None:
    labels = _label(says=ROOTS | {"train3": [_MALFORMED] * 4})
    kept = [label for label in labels if label.query_id == "train3"]
    assert [(label.box, label.gain) for label in kept] == [(None, 0.0)] * _WARMUP.epochs
    assert all(label.box is not None for label in labels if label.query_id != "train3")


def test_policy_that_cannot_point_is_told_so() -> None:
    with pytest.raises(StageError, match=r"set warmup\.labels to region_search"):
        _label(says=dict.fromkeys(QUESTIONS, [_MALFORMED] * 4))


# ---------------------------------------------------------------------------- what decides the draws


def test_each_epoch_draws_its_own_labels() -> None:
    labels = _label()
    epochs = [tuple(labels[start : start + len(QUESTIONS)]) for start in range(0, len(labels), len(QUESTIONS))]
    assert len(set(epochs)) == _WARMUP.epochs


def test_seed_decides_the_labels() -> None:
    assert _label(seed=1) == _label(seed=1)
    assert _label(seed=1) != _label(seed=2)


def test_labels_of_a_query_do_not_depend_on_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_query(labels: Sequence[RegionLabel]) -> dict[str, list[RegionLabel]]:
        return {name: [label for label in labels if label.query_id == name] for name in QUESTIONS}

    together = by_query(_label())
    assert by_query(_label(query_ids=tuple(reversed(QUESTIONS)))) == together
    assert _label(query_ids=["train3"]) == together["train3"]
    monkeypatch.setattr(labelling, "_CHUNK", 2)
    assert by_query(_label()) == together


@pytest.mark.parametrize(
    "changes", [{"num_samples": 2}, {"num_neighbours": 11}, {"temperature": 2.0}, {"epochs": 5}], ids=str
)
def test_every_knob_changes_the_labels(changes: dict[str, float]) -> None:
    assert _label(**changes) != _label()


def test_a_lower_temperature_teaches_boxes_that_earn_more() -> None:
    gains = [np.mean([label.gain for label in _label(temperature=t, epochs=200)]) for t in (0.05, 0.5, 50.0)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > gains[-1] + 0.1
