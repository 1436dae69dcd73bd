"""Rules that nobody trained, and that a training must therefore beat: a few lines on top of boxes that exist.

base_grown           the base policy's box, grown by a margin on every side.
base_grown_or_full   that crop, or the full image where the scorer is no surer of the crop: it must lead its second
                     candidate by more than a multiple of the full image's lead. No label is read.
base_grown_fused     the weighted mean of both views' scores: weight * crop + (1 - weight) * full.
rgrpo_fused          the same mean for r-GRPO's own box, not grown: what a rule adds to the trained policy.

Each leaves a number or two open. They are chosen on val alone, by CondRecall@1 (docs/method.md, D46). Where the policy
keeps the full image, so does the rule; where its answer is malformed, it stays a miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.core.boxes import grow_box
from pipeline.evaluation.methods import Choice, QuerySet, Scorer, View
from pipeline.evaluation.rows import FusedView, Ranked
from pipeline.evaluation.selection import compute_gap
from pipeline.types import Crop, KeepFull, Malformed, Pool

MARGINS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Parts of the box's own width and height that each side moves outwards."""
GAP_RATIOS: Final = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
"""Multiples of the full image's lead; a ratio, since the scale of scores differs from scorer to scorer."""
WEIGHTS: Final = tuple(step / 10 for step in range(1, 11))
"""Weights of the crop; 1 is the crop alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The numbers that a rule leaves open; None where it has no such number.

    Attributes:
        margin: that the box grows by on every side, in parts of its width or height.
        gap_ratio: crop only where the crop's lead exceeds the full image's this many times.
        weight: of the crop's scores in the mean of both.
    """

    margin: float = 0.0
    gap_ratio: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Whose boxes a rule takes, and the settings it may have; of equally good ones the first is chosen.

    So the order states a preference: small margins before large ones, then what trusts the crop less.
    """

    source: Literal["base", "rgrpo"]
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenSetting:
    """A setting and what it reached where it was chosen.

    Attributes:
        setting: the numbers.
        cond_recall_at_1: on val.
        harm_rate: on val.
    """

    setting: Setting
    cond_recall_at_1: float
    harm_rate: float


RULES: Final[Mapping[str, Rule]] = {
    "base_grown": Rule("base", tuple(Setting(margin=margin) for margin in MARGINS)),
    "base_grown_or_full": Rule(
        "base", tuple(Setting(margin=margin, gap_ratio=ratio) for margin in MARGINS for ratio in GAP_RATIOS)
    ),
    "base_grown_fused": Rule(
        "base", tuple(Setting(margin=margin, weight=weight) for margin in MARGINS for weight in WEIGHTS)
    ),
    "rgrpo_fused": Rule("rgrpo", tuple(Setting(weight=weight) for weight in WEIGHTS)),
}


@dataclass(frozen=True, slots=True)
class Look:
    """One query as a rule sees it: the policy's answer, its box grown, and both views; no crop unless it crops."""

    choice: Choice
    crop: View | None
    full: View


def choose_setting(rule: Rule, choices: Sequence[Choice], val: QuerySet, scorer: Scorer) -> ChosenSetting:
    """Return the setting of highest CondRecall@1; of equals the one of least harm, then the first.

    Args:
        rule: the settings tried.
        choices: its source's greedy answers on val, aligned.
        val: the only queries that the choice may see.
        scorer: ranks the views.

    Raises:
        ValueError: no pool holds a positive, so nothing can be told apart.
    """
    if not any(pool.has_positive for pool in val.pools):
        raise ValueError("no pool holds a positive: there is nothing to choose a setting by")
    margins = dict.fromkeys(setting.margin for setting in rule.settings)
    looks = {margin: take_looks(choices, margin, val, scorer) for margin in margins}
    tried = [_measure(setting, looks[setting.margin], val.pools) for setting in rule.settings]
    # `max` keeps the first of equals, which is the one that the rule's order prefers.
    return max(tried, key=lambda found: (found.cond_recall_at_1, -found.harm_rate))


def rank_by_rule(setting: Setting, choices: Sequence[Choice], queries: QuerySet, scorer: Scorer) -> list[Ranked]:
    """Return what the rule makes of each query; choices are its source's, aligned."""
    looks = take_looks(choices, setting.margin, queries, scorer)
    return [apply_rule(setting, look, pool) for look, pool in zip(looks, queries.pools, strict=True)]


def take_looks(choices: Sequence[Choice], margin: float, queries: QuerySet, scorer: Scorer) -> list[Look]:
    """Return each query's answer with its box grown, and how both views rank its pool."""
    grown = [_grow(choice, margin) for choice in choices]
    ids = [query.query_id for query in queries.queries]
    cropped = [
        (query_id, decision.box)
        for query_id, (decision, _) in zip(ids, grown, strict=True)
        if isinstance(decision, Crop)
    ]
    crops = iter(scorer.score_views(cropped))
    full = scorer.score_views([(query_id, None) for query_id in ids])
    return [
        Look(choice, next(crops) if isinstance(choice[0], Crop) else None, whole)
        for choice, whole in zip(grown, full, strict=True)
    ]


def apply_rule(setting: Setting, look: Look, pool: Pool) -> Ranked:
    """Return the decision of a rule about one query and the view that it ranks by; relevance decides nothing."""
    decision, completion = look.choice
    if isinstance(decision, Malformed):
        return Ranked(decision, completion, None)
    if look.crop is None:
        return Ranked(decision, completion, look.full)
    if setting.gap_ratio is not None and compute_gap(look.crop) <= setting.gap_ratio * compute_gap(look.full):
        return Ranked(KeepFull(), completion, look.full)
    if setting.weight is None:
        return Ranked(decision, completion, look.crop)
    return Ranked(decision, completion, _fuse(setting.weight, look.crop, look.full, pool))


def _fuse(weight: float, crop: View, full: View, pool: Pool) -> FusedView:
    # Cosines of one encoder share their scale, so their mean needs no normalisation first. In float64, like all ranks.
    scores_K = weight * crop.scores_K.astype("float64") + (1.0 - weight) * full.scores_K.astype("float64")
    return FusedView.of(scores_K, pool)


def _grow(choice: Choice, margin: float) -> Choice:
    decision, completion = choice
    return (Crop(grow_box(decision.box, margin)), completion) if isinstance(decision, Crop) else choice


def _measure(setting: Setting, looks: Sequence[Look], pools: Sequence[Pool]) -> ChosenSetting:
    ranked = [apply_rule(setting, look, pool) for look, pool in zip(looks, pools, strict=True)]
    first = [row.view is not None and row.view.outcome.first_rank == 1 for row in ranked]
    lost = [look.full.outcome.first_rank == 1 and not hit for look, hit in zip(looks, first, strict=True)]
    return ChosenSetting(
        setting=setting,
        cond_recall_at_1=sum(first) / sum(pool.has_positive for pool in pools),
        harm_rate=sum(lost) / len(pools),
    )
