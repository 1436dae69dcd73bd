import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core.advantage import (
    FULL,
    MALFORMED,
    REGION,
    Advantages,
    compute_advantages,
    count_zero_signal,
    damp_decisions,
)


@st.composite
def groups(draw, codes=(REGION, FULL, MALFORMED)):
    num_groups, size = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    num = num_groups * size
    rewards = draw(st.lists(st.floats(-5.0, 5.0), min_size=num, max_size=num))
    decisions = draw(st.lists(st.sampled_from(codes), min_size=num, max_size=num))
    return np.reshape(rewards, (num_groups, size)), np.reshape(decisions, (num_groups, size))


@settings(deadline=None)
@given(groups())
def test_plain_advantages_sum_to_0_in_each_group(case):
    rewards, decisions = case
    advantages = compute_advantages(rewards, decisions, factorised=False)
    np.testing.assert_allclose(advantages.decision_BG.sum(axis=1), 0.0, atol=1e-9)
    np.testing.assert_array_equal(advantages.decision_BG, advantages.argument_BG)
    np.testing.assert_allclose(np.diff(advantages.decision_BG), np.diff(rewards), atol=1e-9)


@settings(deadline=None)
@given(groups())
def test_argument_advantages_sum_to_0_within_each_arm(case):
    rewards, decisions = case
    argument = compute_advantages(rewards, decisions, factorised=True).argument_BG
    for arm in (REGION, FULL):
        np.testing.assert_allclose(np.where(decisions == arm, argument, 0.0).sum(axis=1), 0.0, atol=1e-9)


@settings(deadline=None)
@given(groups())
def test_both_arms_pull_the_decision_equally_and_towards_the_better_arm(case):
    rewards, decisions = case
    advantages = compute_advantages(rewards, decisions, factorised=True)
    for row in range(len(rewards)):
        region, full = decisions[row] == REGION, decisions[row] == FULL
        if not (region.any() and full.any()):
            continue
        gap = rewards[row][region].mean() - rewards[row][full].mean()
        size = rewards.shape[1]
        assert advantages.decision_BG[row][region].sum() == pytest.approx(size * gap / 4, abs=1e-9)
        assert advantages.decision_BG[row][full].sum() == pytest.approx(-size * gap / 4, abs=1e-9)


@settings(deadline=None)
@given(groups(), st.floats(-3.0, 3.0))
def test_a_constant_added_to_all_rewards_changes_nothing(case, constant):
    rewards, decisions = case
    for factorised in (False, True):
        before = compute_advantages(rewards, decisions, factorised=factorised)
        after = compute_advantages(rewards + constant, decisions, factorised=factorised)
        np.testing.assert_allclose(after.decision_BG, before.decision_BG, atol=1e-9)
        np.testing.assert_allclose(after.argument_BG, before.argument_BG, atol=1e-9)


@settings(deadline=None)
@given(groups(), st.randoms(use_true_random=False))
def test_rows_keep_their_advantages_when_shuffled(case, random):
    rewards, decisions = case
    order = list(range(rewards.shape[1]))
    random.shuffle(order)
    before = compute_advantages(rewards, decisions, factorised=True)
    after = compute_advantages(rewards[:, order], decisions[:, order], factorised=True)
    np.testing.assert_allclose(after.decision_BG, before.decision_BG[:, order], atol=1e-9)
    np.testing.assert_allclose(after.argument_BG, before.argument_BG[:, order], atol=1e-9)


@settings(deadline=None)
@given(groups(codes=(REGION, FULL)))
def test_decision_advantages_are_zero_only_where_the_arms_earn_the_same(case):
    rewards, decisions = case
    region, full = decisions == REGION, decisions == FULL
    assume((region.any(axis=1) & full.any(axis=1)).all())
    decision = compute_advantages(rewards, decisions, factorised=True).decision_BG
    gap = np.array([row[a].mean() - row[b].mean() for row, a, b in zip(rewards, region, full, strict=True)])
    assert (
        np.sign(np.where(region, decision, -decision))[np.abs(gap) > 1e-6] == np.sign(gap)[np.abs(gap) > 1e-6, None]
    ).all()


def test_factorised_by_hand():
    # REGION earns 1, 0, 2 (mean 1), FULL 0 (mean 0), one row opened neither; centre 0.5, G = 5
    advantages = compute_advantages([[1.0, 0.0, 2.0, 0.0, -1.0]], [[0, 0, 0, 1, 2]], factorised=True)
    region = 5 / 6 * 0.5
    np.testing.assert_allclose(advantages.decision_BG, [[region, region, region, -5 / 2 * 0.5, -1.5]])
    np.testing.assert_allclose(advantages.argument_BG, [[0.0, -1.0, 1.0, 0.0, -1.5]])


def test_broken_box_pulls_down_its_own_arm_only():
    advantages = compute_advantages([[2.0, -1.0, 0.0]], [[REGION, REGION, FULL]], factorised=True)
    np.testing.assert_allclose(advantages.argument_BG, [[1.5, -1.5, 0.0]])


def test_group_with_one_arm_falls_back_to_its_own_mean():
    advantages = compute_advantages([[1.0, 0.0, -1.0], [0.0, 3.0, 3.0]], [[0, 0, 2], [1, 1, 1]], factorised=True)
    np.testing.assert_allclose(advantages.decision_BG, [[1.0, 0.0, -1.0], [-2.0, 1.0, 1.0]])
    np.testing.assert_allclose(advantages.argument_BG, [[0.5, -0.5, -1.0], [-2.0, 1.0, 1.0]])


def test_group_without_any_arm_falls_back_to_its_own_mean():
    advantages = compute_advantages([[-1.0, -3.0]], [[2, 2]], factorised=True)
    np.testing.assert_allclose(advantages.decision_BG, [[1.0, -1.0]])
    np.testing.assert_allclose(advantages.argument_BG, [[1.0, -1.0]])


def test_groups_do_not_touch_each_other():
    rewards, decisions = np.array([[1.0, 0.0, 2.0], [5.0, -4.0, 0.0]]), np.array([[0, 0, 1], [0, 1, 1]])
    together = compute_advantages(rewards, decisions, factorised=True)
    for row in range(2):
        alone = compute_advantages(rewards[[row]], decisions[[row]], factorised=True)
        np.testing.assert_allclose(together.decision_BG[[row]], alone.decision_BG)
        np.testing.assert_allclose(together.argument_BG[[row]], alone.argument_BG)


def test_zero_signal_counts_groups_with_nothing_in_either_part():
    decision = np.array([[0.0, 0.0], [0.5, -0.5], [0.0, 0.0], [1e-12, 0.0]])
    argument = np.array([[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.0, -1e-12]])
    assert count_zero_signal(Advantages(decision, argument)) == 2


def test_group_of_equal_rewards_has_no_signal():
    advantages = compute_advantages([[0.3] * 5, [0.3] * 4 + [0.4]], [[0, 0, 0, 1, 1]] * 2, factorised=True)
    assert count_zero_signal(advantages) == 1


@pytest.mark.parametrize(
    ("rewards", "decisions", "match"),
    [
        ([0.0, 1.0], [0, 1], "share a shape"),
        ([[0.0, 1.0]], [[0, 1, 1]], "share a shape"),
        ([[]], [[]], "share a shape"),
        ([[0.0, math.nan]], [[0, 1]], "finite"),
        ([[0.0, 1.0]], [[0, 3]], "codes"),
    ],
)
def test_bad_inputs_are_refused(rewards, decisions, match):
    with pytest.raises(ValueError, match=match):
        compute_advantages(rewards, decisions, factorised=True)


def test_a_policy_that_is_right_is_left_alone_and_one_that_is_wrong_is_pulled_in_full() -> None:
    decisions = np.array([[REGION, FULL]])
    advantage = np.array([[1.0, -1.0]])

    def damp(p_region: float) -> np.ndarray:
        return damp_decisions(advantage, decisions, [[p_region, 1.0 - p_region]], saturation=1.0, anchor=0.0)

    np.testing.assert_allclose(damp(0.5), advantage)
    np.testing.assert_allclose(damp(0.9), 0.36 * advantage)
    np.testing.assert_allclose(damp(1.0), 0.0 * advantage)
    np.testing.assert_allclose(damp(0.1), advantage)
    np.testing.assert_allclose(damp(0.0), advantage)


@given(
    st.floats(-3.0, 3.0).filter(lambda a: abs(a) > 1e-6),
    st.floats(0.0, 1.0),
    st.floats(0.05, 2.0),
)
def test_damping_keeps_the_sign_and_never_amplifies(a: float, p: float, saturation: float) -> None:
    (damped,) = damp_decisions(np.array([[a]]), [[REGION]], [[p]], saturation=saturation, anchor=0.0)[0]
    assert damped * a >= 0.0
    assert abs(damped) <= min(1.0, abs(a) / saturation) + 1e-12


def test_the_anchor_pulls_both_arms_by_their_share_and_leaves_malformed_rows_alone() -> None:
    decisions = np.array([[REGION, REGION, FULL, MALFORMED]])
    p_opening = np.array([[0.6, 0.6, 0.3, 0.1]])
    damped = damp_decisions(np.array([[0.0, 0.0, 0.0, -2.0]]), decisions, p_opening, saturation=1.0, anchor=0.5)
    np.testing.assert_allclose(damped, [[0.5 * 0.6, 0.5 * 0.6, 0.5 * 0.3 * 2.0, -2.0]])


def test_a_large_advantage_counts_no_more_than_a_saturated_one() -> None:
    decisions = np.array([[REGION, FULL], [REGION, FULL]])
    advantage = np.array([[3.0, -3.0], [-0.25, 0.25]])
    damped = damp_decisions(advantage, decisions, np.full((2, 2), 0.5), saturation=0.25, anchor=0.0)
    np.testing.assert_allclose(damped, [[1.0, -1.0], [-1.0, 1.0]])
