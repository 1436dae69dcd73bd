import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.advantage import (
    FULL,
    MALFORMED,
    REGION,
    compute_arm_values,
    compute_box_advantages,
    compute_group_advantages,
    count_zero_signal,
    spread_over_rows,
)
from pipeline.core.decision import compute_decision_loss

ARMS = (REGION, FULL, MALFORMED)


@st.composite
def groups(draw, codes=ARMS):
    num_groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    num = num_groups * size
    rewards = draw(st.lists(st.floats(-5.0, 5.0), min_size=num, max_size=num))
    decisions = draw(st.lists(st.sampled_from(codes), min_size=num, max_size=num))
    return np.reshape(rewards, (num_groups, size)), np.reshape(decisions, (num_groups, size))


@st.composite
def balanced_groups(draw):
    """Groups of both arms, in any sizes, and rows of neither."""
    rewards, decisions = draw(groups())
    decisions[:, :2] = [REGION, FULL]
    return rewards, decisions


# -- the paper's form ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(groups())
def test_plain_advantages_sum_to_0_in_each_group(case):
    rewards, _ = case
    advantages = compute_group_advantages(rewards)
    np.testing.assert_allclose(advantages.sum(axis=1), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.diff(advantages), np.diff(rewards), atol=1e-9)


# -- boxes --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(groups())
def test_box_advantages_sum_to_0_within_each_arm(case):
    rewards, decisions = case
    boxes = compute_box_advantages(rewards, decisions)
    for arm in ARMS:
        np.testing.assert_allclose(np.where(decisions == arm, boxes, 0.0).sum(axis=1), 0.0, atol=1e-8)


@settings(deadline=None)
@given(groups(), st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3))
def test_what_an_arm_earns_on_the_whole_says_nothing_of_its_boxes(case, bonuses):
    rewards, decisions = case
    before = compute_box_advantages(rewards, decisions)
    after = compute_box_advantages(rewards + np.asarray(bonuses)[decisions], decisions)
    np.testing.assert_allclose(after, before, atol=1e-7)


@settings(deadline=None)
@given(groups())
def test_better_rows_of_an_arm_are_never_pulled_less(case):
    rewards, decisions = case
    boxes = compute_box_advantages(rewards, decisions)
    for row_rewards, row_codes, row_boxes in zip(rewards, decisions, boxes, strict=True):
        for arm in ARMS:
            order = np.argsort(row_rewards[row_codes == arm], kind="stable")
            assert (np.diff(row_boxes[row_codes == arm][order]) >= -1e-12).all()


@settings(deadline=None)
@given(groups(), st.randoms(use_true_random=False))
def test_rows_keep_their_advantages_when_shuffled(case, random):
    rewards, decisions = case
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    before = compute_box_advantages(rewards, decisions)
    after = compute_box_advantages(rewards[:, order], decisions[:, order])
    np.testing.assert_allclose(after, before[:, order], atol=1e-8)


def test_boxes_by_hand():
    # REGION earns 1, 0, 2: mean 1, deviation sqrt(2 / 3). FULL and the row of neither stand alone in their arms.
    boxes = compute_box_advantages([[1.0, 0.0, 2.0, 0.0, -1.0]], [[0, 0, 0, 1, 2]])
    size = 1.0 / (math.sqrt(2 / 3) + 0.05)
    np.testing.assert_allclose(boxes, [[0.0, -size, size, 0.0, 0.0]])


def test_a_huge_gain_counts_little_more_than_a_good_one():
    small, large = (compute_box_advantages([[gain, 0.0]], [[REGION, REGION]])[0, 0] for gain in (0.5, 5.0))
    assert small < large < 1.25 * small


def test_boxes_nearly_as_good_as_each_other_are_hardly_told_apart():
    near, far = (compute_box_advantages([[gain, 0.0]], [[REGION, REGION]])[0, 0] for gain in (0.002, 2.0))
    assert near == pytest.approx(0.001 / 0.051)
    assert far > 0.9


def test_broken_box_pulls_down_its_own_arm_only():
    boxes = compute_box_advantages([[2.0, -1.0, 0.0]], [[REGION, REGION, FULL]])
    np.testing.assert_allclose(boxes, [[1.5 / 1.55, -1.5 / 1.55, 0.0]])


def test_rows_of_neither_arm_are_compared_among_themselves():
    boxes = compute_box_advantages([[-1.0, -3.0, 9.0]], [[MALFORMED, MALFORMED, REGION]])
    np.testing.assert_allclose(boxes, [[1.0 / 1.05, -1.0 / 1.05, 0.0]])


@settings(deadline=None)
@given(groups())
def test_groups_do_not_touch_each_other(case):
    rewards, decisions = case
    together = compute_box_advantages(rewards, decisions)
    for row in range(len(rewards)):
        np.testing.assert_allclose(together[[row]], compute_box_advantages(rewards[[row]], decisions[[row]]), atol=1e-9)


# -- decisions ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(balanced_groups())
def test_arm_values_are_the_means_of_their_rows(case):
    rewards, decisions = case
    values = compute_arm_values(rewards, decisions)
    for row in range(len(rewards)):
        for arm in (REGION, FULL):
            assert values[row, arm] == pytest.approx(rewards[row][decisions[row] == arm].mean(), abs=1e-9)


@settings(deadline=None)
@given(balanced_groups(), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
def test_arms_of_any_sizes_pull_by_their_weights(case, region, full):
    _, decisions = case
    advantages = spread_over_rows([[region, full]] * len(decisions), decisions)
    size = decisions.shape[1]
    for arm, weight in ((REGION, region), (FULL, full)):
        sums = np.where(decisions == arm, advantages, 0.0).sum(axis=1)
        np.testing.assert_allclose(sums, size * weight, atol=1e-9)
    assert (advantages[decisions == MALFORMED] == 0.0).all()


def test_six_rows_against_two_push_no_mass_to_neither():
    # FULL earns 1 more. By the clipped advantages of before the arms' sums were -6 and +2, so p of neither rose.
    decisions = np.array([[REGION] * 6 + [FULL] * 2])
    values = compute_arm_values([[0.0] * 6 + [1.0] * 2], decisions)
    p = np.array([0.5, 0.4])
    loss = compute_decision_loss(values, [p], [p], temperature=0.25, beta=0.0)
    advantages = spread_over_rows(loss.weight_BA, decisions)
    sums = np.array([advantages[decisions == arm].sum() for arm in (REGION, FULL)])
    np.testing.assert_allclose(sums, 8.0 * loss.weight_BA[0])
    pull = sums - p * sums.sum()  # of the logits of both openings; what is left falls on those of neither
    assert pull[REGION] == pytest.approx(-pull[FULL] + 8.0 * 0.1)
    assert pull[REGION] < 0.0 < pull[FULL]
    assert -sums.sum() * 0.1 < 0.0


def test_three_to_five_and_five_to_three_pull_alike():
    sums = []
    for num_region in (3, 5):
        decisions = np.array([[REGION] * num_region + [FULL] * (8 - num_region)])
        advantages = spread_over_rows([[0.7, -0.2]], decisions)
        sums.append([advantages[decisions == arm].sum() for arm in (REGION, FULL)])
    np.testing.assert_allclose(sums[0], sums[1])


# -- what is watched and refused ----------------------------------------------------------------------------------


def test_zero_signal_counts_groups_whose_rows_all_earn_the_same():
    assert count_zero_signal([[0.3] * 4, [0.3, 0.3, 0.3, 0.4], [-1.0, -1.0, -1.0, -1.0 + 1e-12]]) == 2


@pytest.mark.parametrize("compute", [compute_box_advantages, compute_arm_values])
@pytest.mark.parametrize(
    ("rewards", "decisions", "match"),
    [
        ([0.0, 1.0], [0, 1], "shape"),
        ([[0.0, 1.0]], [[0, 1, 1]], "share a shape"),
        ([[]], [[]], "shape"),
        ([[0.0, math.nan]], [[0, 1]], "finite"),
        ([[0.0, 1.0]], [[0, 3]], "codes"),
    ],
)
def test_bad_inputs_are_refused(compute, rewards, decisions, match):
    with pytest.raises(ValueError, match=match):
        compute(rewards, decisions)


@pytest.mark.parametrize("rewards", [[0.0, 1.0], [[]], [[0.0, math.inf]]])
def test_bad_rewards_are_refused_in_the_papers_form_too(rewards):
    with pytest.raises(ValueError, match="rewards must"):
        compute_group_advantages(rewards)


@pytest.mark.parametrize("codes", [[REGION, REGION], [FULL, MALFORMED]])
def test_a_group_without_an_arm_has_no_values(codes):
    with pytest.raises(ValueError, match="rows of both arms"):
        compute_arm_values([[0.0, 1.0], [0.0, 1.0]], [[REGION, FULL], codes])
