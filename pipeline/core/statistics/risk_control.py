"""A bound on a rate that holds for what was not seen: Learn-then-Test with exact binomial tests.

Choosing the best setting whose rate on val keeps a bound keeps it on val by construction and nowhere else: among many
settings, the chosen one is often one that was lucky. Learn-then-Test (Angelopoulos, Bates, Candes, Jordan and Lei,
2021) turns it round. For each setting the null hypothesis is "its true rate is above the bound"; a setting may be
chosen only if its null is rejected, by tests that keep the chance of any wrong rejection at a stated level. Settings
are tested in an order that was fixed beforehand, the safest first, up to the first that is not rejected (fixed-sequence
testing). So each test may run at the full level: before any wrong rejection, the first true null must itself be
rejected.

What is counted must be independent draws from what the bound is to hold for, each harmed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtr, bdtri


@dataclass(frozen=True, slots=True)
class RiskLimit:
    """A bound on a rate, and the share of all val samples on which the choice may break it.

    Attributes:
        bound: highest true rate allowed, in [0, 1].
        level: chance of choosing a setting above the bound, in (0, 1).
    """

    bound: float
    level: float


def compute_binomial_tail(num_harmed: int, num_units: int, bound: float) -> float:
    """Return the p value of "the true rate is above `bound`": P(Binomial(num_units, bound) <= num_harmed).

    Args:
        num_harmed: units harmed, from 0 to `num_units`.
        num_units: independent draws, at least 1.
        bound: in [0, 1].

    Raises:
        ValueError: a count is out of range.
    """
    _check_counts(num_harmed, num_units)
    # The rate cannot lie above 1; scipy's incomplete beta function has no value at this edge.
    return 0.0 if bound >= 1.0 else float(bdtr(num_harmed, num_units, bound))


def compute_upper_limit(num_harmed: int, num_units: int, level: float) -> float:
    """Return the exact upper confidence limit of a rate (Clopper and Pearson, 1934), one-sided at 1 - `level`.

    It keeps a bound exactly where `compute_binomial_tail` at that bound is at most `level`.

    Args:
        num_harmed: units harmed, from 0 to `num_units`.
        num_units: independent draws, at least 1.
        level: in (0, 1).

    Raises:
        ValueError: a count is out of range.
    """
    _check_counts(num_harmed, num_units)
    return 1.0 if num_harmed == num_units else float(bdtri(num_harmed, num_units, level))


def count_controlled(num_harmed_T: Sequence[int], num_units: int, limit: RiskLimit) -> int:
    """Return how many settings, from the first on, keep the limit: each of them may be chosen for any reason.

    Args:
        num_harmed_T: (T,) units harmed under each setting, in an order that these units had no say in.
        num_units: independent draws that every setting was tried on, at least 1.
        limit: bound and level.

    Raises:
        ValueError: a count is out of range.
    """
    for place, num_harmed in enumerate(num_harmed_T):
        if compute_binomial_tail(num_harmed, num_units, limit.bound) > limit.level:
            return place
    return len(num_harmed_T)


def _check_counts(num_harmed: int, num_units: int) -> None:
    if not 0 <= num_harmed <= num_units or num_units < 1:
        raise ValueError(f"need 0 <= harmed <= units and at least one unit, got {num_harmed} of {num_units}")
