import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RewardParams
from pipeline.core.reward import compute_reward
from pipeline.types import Box, Crop, KeepFull, Malformed, Outcome

PARAMS = RewardParams()
CROP = Crop(Box(0.1, 0.1, 0.6, 0.6))
FIRST = Outcome(first_rank=1, reciprocal_rank=1.0, ndcg=1.0, margin=0.05)
FOURTH = Outcome(first_rank=4, reciprocal_rank=0.25, ndcg=0.43, margin=-0.10)
SECOND = Outcome(first_rank=2, reciprocal_rank=0.5, ndcg=0.63, margin=-0.02)
WITHOUT = Outcome(first_rank=None, reciprocal_rank=0.0, ndcg=0.0, margin=None)


def test_reward_of_a_better_crop_worked_by_hand():
    reward = compute_reward(CROP, FOURTH, SECOND, PARAMS)
    assert reward.mrr == pytest.approx(0.2 * 0.25)
    assert reward.ndcg == pytest.approx(0.2 * 0.20)
    assert reward.rank == pytest.approx(0.2 * math.log(5 / 3))
    assert reward.margin == pytest.approx(0.4 * 0.08)
    # 0.05 + 0.04 + 0.102165 + 0.032 = 0.224165, times 5
    assert reward.total == pytest.approx(1.120826, abs=1e-6)


def test_reward_of_a_worse_crop_is_floored_before_the_scale():
    reward = compute_reward(CROP, SECOND, FOURTH, PARAMS)
    assert reward.mrr + reward.ndcg + reward.rank + reward.margin == pytest.approx(-0.224165, abs=1e-6)
    assert reward.total == pytest.approx(-0.25)


def test_crop_that_changes_nothing_earns_0():
    assert compute_reward(CROP, SECOND, SECOND, PARAMS).total == 0.0


def test_full_and_malformed():
    assert compute_reward(KeepFull(), FIRST, None, PARAMS).total == 1.0
    assert compute_reward(KeepFull(), SECOND, None, PARAMS).total == 0.0
    assert compute_reward(Malformed("x"), FIRST, None, PARAMS).total == -1.0


outcomes = st.builds(
    lambda rank, ndcg, margin: Outcome(first_rank=rank, reciprocal_rank=1 / rank, ndcg=ndcg, margin=margin),
    st.integers(1, 20),
    st.floats(0.01, 1.0),
    st.floats(-2.0, 2.0),
)


@settings(deadline=None)
@given(outcomes, outcomes, st.data())
def test_reward_rises_with_each_part(baseline, view, data):
    better_rank = data.draw(st.integers(1, view.first_rank))
    before = compute_reward(CROP, baseline, view, PARAMS)
    for part, better in {
        "mrr": replace(view, reciprocal_rank=view.reciprocal_rank + 0.1),
        "ndcg": replace(view, ndcg=view.ndcg + 0.1),
        "rank": replace(view, first_rank=better_rank),
        "margin": replace(view, margin=view.margin + 0.1),
    }.items():
        after = compute_reward(CROP, baseline, better, PARAMS)
        assert after.total >= before.total
        if better != view:
            assert getattr(after, part) > getattr(before, part)
            if before.total > PARAMS.scale * PARAMS.floor:
                assert after.total > before.total


@pytest.mark.parametrize(
    ("knob", "value", "decision", "baseline", "view"),
    [
        ("weight_mrr", 0.3, CROP, FOURTH, SECOND),
        ("weight_ndcg", 0.3, CROP, FOURTH, SECOND),
        ("weight_rank", 0.3, CROP, FOURTH, SECOND),
        ("weight_margin", 0.3, CROP, FOURTH, SECOND),
        ("floor", -0.1, CROP, SECOND, FOURTH),
        ("scale", 2.0, CROP, FOURTH, SECOND),
        ("full_when_first", 0.5, KeepFull(), FIRST, None),
        ("full_otherwise", 0.1, KeepFull(), SECOND, None),
        ("malformed", -2.0, Malformed("x"), SECOND, None),
    ],
)
def test_every_knob_changes_a_reward(knob, value, decision, baseline, view):
    changed = PARAMS.model_copy(update={knob: value})
    before = compute_reward(decision, baseline, view, PARAMS).total
    assert compute_reward(decision, baseline, view, changed).total != pytest.approx(before)


def test_the_knob_test_names_every_knob():
    marks = test_every_knob_changes_a_reward.pytestmark
    where_outcomes_come_from = {"on", "depth"}
    assert {case[0] for case in marks[0].args[1]} == set(RewardParams.model_fields) - where_outcomes_come_from


def test_all_positive_pool_has_no_margin_term():
    full = replace(FIRST, margin=None)
    assert compute_reward(CROP, full, full, PARAMS).total == 0.0


@pytest.mark.parametrize("decision", [CROP, KeepFull(), Malformed("x")])
def test_pool_without_a_positive_is_an_error(decision):
    with pytest.raises(ValueError, match="without a positive"):
        compute_reward(decision, WITHOUT, FIRST, PARAMS)


def test_impossible_views_are_errors():
    with pytest.raises(ValueError, match="needs the outcome"):
        compute_reward(CROP, FIRST, None, PARAMS)
    with pytest.raises(ValueError, match="without a positive"):
        compute_reward(CROP, FIRST, WITHOUT, PARAMS)
    with pytest.raises(ValueError, match="not of one pool"):
        compute_reward(CROP, FIRST, replace(FIRST, margin=None), PARAMS)
