import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, rel_entr, softmax

from pipeline.core.decision import compute_decision_loss

REGION, FULL = 0, 1
TEMPERATURE = 0.25

_values = st.tuples(st.floats(-5.0, 5.0), st.floats(-5.0, 5.0))
_logits = st.lists(st.floats(-6.0, 6.0), min_size=3, max_size=7)
"""Of a vocabulary whose first two tokens open REGION and FULL."""


def _compute_loss(values, p, reference=None, *, temperature=TEMPERATURE, beta=0.0):
    return compute_decision_loss(
        [values], [p], [p if reference is None else reference], temperature=temperature, beta=beta
    )


def _loss_of(logits, values, reference, beta):
    return _compute_loss(values, softmax(logits)[:2], reference, beta=beta).loss_B[0]


def _pull(logits, values, reference=None, beta=0.0):
    """Minus the gradient by the logits that the weights make: sum of weight times the gradient of log p of an arm."""
    p = softmax(logits)
    weight = _compute_loss(values, p[:2], reference, beta=beta).weight_BA[0]
    return weight[REGION] * (np.eye(len(p))[REGION] - p) + weight[FULL] * (np.eye(len(p))[FULL] - p)


def _compute_target(values, temperature=TEMPERATURE):
    """Return the odds of e^(gap / temperature) to 1, written another way."""
    return softmax(np.asarray(values) / temperature)


@settings(deadline=None)
@given(_logits, st.data(), _values, st.floats(0.0, 2.0))
def test_weights_make_the_gradient_of_the_loss(logits, data, values, beta):
    others = data.draw(st.lists(st.floats(-6.0, 6.0), min_size=len(logits), max_size=len(logits)))
    reference = softmax(others)[:2]
    pull, step = _pull(logits, values, reference, beta), 1e-5
    for place in range(len(logits)):
        nudge = step * np.eye(len(logits))[place]
        above, below = (_loss_of(np.asarray(logits) + sign * nudge, values, reference, beta) for sign in (1, -1))
        assert -pull[place] == pytest.approx((above - below) / (2 * step), abs=2e-5, rel=1e-4)


@settings(deadline=None)
@given(_logits, _values)
def test_gradient_without_a_kl_is_p_less_what_is_wanted(logits, values):
    wanted = np.zeros(len(logits))
    wanted[:2] = _compute_target(values)
    np.testing.assert_allclose(-_pull(logits, values), softmax(logits) - wanted, atol=1e-9)


@settings(deadline=None)
@given(_logits, st.data(), _values, st.floats(0.0, 2.0))
def test_gradient_with_a_kl_is_the_closed_form(logits, data, values, beta):
    p = softmax(logits)
    others = data.draw(st.lists(st.floats(-6.0, 6.0), min_size=len(logits), max_size=len(logits)))
    reference = softmax(others)[:2]
    p3, q3 = (np.append(pair, 1.0 - pair.sum()) for pair in (p[:2], reference))
    kl = rel_entr(p3, q3).sum()
    ratio = np.full(len(p), math.log(p3[2] / q3[2]))  # tokens that open neither move together
    ratio[:2] = np.log(p3[:2] / q3[:2])
    wanted = np.zeros(len(p))
    wanted[:2] = _compute_target(values)
    np.testing.assert_allclose(-_pull(logits, values, reference, beta), p - wanted + beta * p * (ratio - kl), atol=1e-8)


@given(_values, st.floats(0.05, 3.0))
def test_target_is_the_odds_of_the_gap_over_the_temperature(values, temperature):
    loss = _compute_loss(values, (0.5, 0.4), temperature=temperature)
    assert loss.target_B[0] == pytest.approx(_compute_target(values, temperature)[REGION], abs=1e-12)


@given(_values)
def test_a_policy_that_is_right_stands_still(values):
    target = np.clip(_compute_target(values), 1e-9, None)
    logits = np.log(np.append(target, 1e-12))
    np.testing.assert_allclose(_pull(logits, values), 0.0, atol=1e-8)


@settings(deadline=None)
@given(_logits, _values)
def test_and_no_other_does(logits, values):
    p = softmax(logits)
    if abs(p[REGION] - _compute_target(values)[REGION]) > 1e-3:
        assert np.abs(_pull(logits, values)).max() > 5e-4


@pytest.mark.parametrize("collapsed_onto", [REGION, FULL])
def test_a_collapsed_policy_is_pulled_in_full_towards_the_better_arm(collapsed_onto):
    p = np.array([1e-3, 1e-3, 1e-4])
    p[collapsed_onto] = 1.0 - 1.1e-3
    values = np.array([1.0, 1.0])
    values[collapsed_onto] = 0.0
    pull = _pull(np.log(p), values)
    assert pull[1 - collapsed_onto] > 0.95
    assert pull[collapsed_onto] < -0.95


@given(_values)
def test_arms_of_equal_worth_are_wanted_alike(values):
    assert _compute_loss((values[0], values[0]), (0.1, 0.8)).target_B[0] == 0.5


@settings(deadline=None)
@given(_logits, _values)
def test_what_opens_neither_arm_only_loses(logits, values):
    pull = _pull(logits, values)
    assert (pull[2:] < 0.0).all()
    np.testing.assert_allclose(pull[2:], -softmax(logits)[2:], atol=1e-9)
    assert pull.sum() == pytest.approx(0.0, abs=1e-9)


@settings(deadline=None)
@given(_logits, st.data())
def test_kl_is_that_of_three_outcomes(logits, data):
    others = data.draw(st.lists(st.floats(-6.0, 6.0), min_size=len(logits), max_size=len(logits)))
    p, q = softmax(logits)[:2], softmax(others)[:2]
    wanted = rel_entr(np.append(p, 1.0 - p.sum()), np.append(q, 1.0 - q.sum())).sum()
    kl = _compute_loss((0.0, 0.0), p, q).kl_B[0]
    assert kl == pytest.approx(wanted, abs=1e-9)
    assert kl >= -1e-12


def test_kl_is_0_for_the_reference_itself():
    loss = _compute_loss((1.0, 0.0), (0.3, 0.6), beta=5.0)
    assert loss.kl_B[0] == 0.0
    np.testing.assert_allclose(loss.weight_BA[0], _compute_target((1.0, 0.0)))


@pytest.mark.parametrize("p_region", [1e-3, 1e-6, 1e-12, 1e-30, 0.0])
def test_kl_and_pull_stay_bounded_as_an_arm_dies(p_region):
    reference = (0.5, 0.49)
    loss = _compute_loss((1.0, 0.0), (p_region, 0.99 - p_region), reference, beta=1.0)
    assert 0.0 < loss.kl_B[0] < 1.0
    assert np.isfinite(loss.loss_B).all()
    # TRL's estimate for a forced row has the slope 1 - q / p in log p, 5e11 at p = 1e-12.
    assert np.abs(loss.weight_BA).max() < 2.0


def test_sums_above_1_by_rounding_are_taken_for_1():
    loss = _compute_loss((1.0, 0.0), (0.4, 0.6000004), (0.4, 0.6), beta=0.04)
    assert np.isfinite([loss.loss_B[0], *loss.weight_BA[0], loss.kl_B[0]]).all()
    assert loss.kl_B[0] == pytest.approx(0.0, abs=1e-5)


def test_groups_do_not_touch_each_other():
    values, p, q = [[1.0, 0.0], [-2.0, 0.5]], [[0.2, 0.7], [0.9, 0.05]], [[0.5, 0.4], [0.6, 0.3]]
    together = compute_decision_loss(values, p, q, temperature=0.5, beta=0.1)
    for row in range(2):
        alone = compute_decision_loss(
            values[row : row + 1], p[row : row + 1], q[row : row + 1], temperature=0.5, beta=0.1
        )
        for name in ("loss_B", "weight_BA", "target_B", "kl_B"):
            np.testing.assert_array_equal(getattr(together, name)[row], getattr(alone, name)[0])


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"beta": 0.5}])
def test_every_knob_changes_the_pull(change):
    knobs = {"temperature": 0.25, "beta": 0.04}
    before, after = (
        _compute_loss((0.3, 0.0), (0.2, 0.7), (0.5, 0.4), **kept).weight_BA for kept in (knobs, knobs | change)
    )
    assert np.abs(before - after).max() > 0.01


# -- descent ------------------------------------------------------------------------------------------------------


def _descend(logits, values, *, beta, reference, num_steps=4000, rate=0.5):
    for _ in range(num_steps):
        logits = logits + rate * _pull(logits, values, reference, beta)
    return softmax(logits)


@pytest.mark.parametrize(("values", "start"), [((3.0, 0.0), 1e-3), ((0.1, 0.0), 1e-3), ((0.0, 1.0), 0.9)])
def test_descent_ends_at_the_target_and_leaks_no_mass(values, start):
    # 50 tokens that open neither arm hold a tenth of the mass.
    logits = np.log(np.concatenate([[start, 0.9 - start if start < 0.9 else 1e-3], np.full(50, 0.1 / 50)]))
    p = _descend(logits, values, beta=0.0, reference=None)
    assert p[:2].sum() > 0.99
    assert p[REGION] == pytest.approx(_compute_target(values)[REGION], abs=0.01)


def test_descent_with_a_kl_ends_between_target_and_reference_whatever_the_start():
    values, reference, beta = (0.5, 0.0), np.array([0.3, 0.69]), 0.5
    ends = [
        _descend(np.log([start, 0.98 - start, 0.01, 0.01]), values, beta=beta, reference=reference)
        for start in (1e-3, 0.3, 0.97)
    ]
    for end in ends:
        np.testing.assert_allclose(end[:2], ends[0][:2], atol=1e-3)
        assert reference[REGION] < end[REGION] < _compute_target(values)[REGION]
        # The fixed point solves p = pi - beta p (log ratio - KL) in each logit.
        np.testing.assert_allclose(_pull(log_softmax(np.log(end)), values, reference, beta), 0.0, atol=1e-3)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "p", "reference", "match"),
    [
        ([0.0, 1.0], [[0.5, 0.5]], [[0.5, 0.5]], "values"),
        ([[0.0, 1.0, 2.0]], [[0.5, 0.5]], [[0.5, 0.5]], "values"),
        ([[0.0, math.nan]], [[0.5, 0.5]], [[0.5, 0.5]], "values must be finite"),
        ([[0.0, 1.0]], [[0.5, math.inf]], [[0.5, 0.5]], "probabilities must be finite"),
        ([[0.0, 1.0]], [[0.5, 0.6]], [[0.5, 0.5]], "at most 1"),
        ([[0.0, 1.0]], [[0.5, 0.5]], [[-0.1, 0.5]], "0 or more"),
        ([[0.0, 1.0]] * 2, [[0.5, 0.5]], [[0.5, 0.5]], "share a shape"),
        ([[0.0, 1.0]], [[0.5, 0.5]], [[0.5, 0.5]] * 2, "share a shape"),
    ],
)
def test_bad_inputs_are_refused(values, p, reference, match):
    with pytest.raises(ValueError, match=match):
        compute_decision_loss(values, p, reference, temperature=0.25, beta=0.04)
