"""Rules that nobody trained, and that a training must therefore beat: a few lines on top of boxes that exist.

base_grown           the base policy's box, grown by a margin on every side.
base_squared         that box made square in pixels first, since an encoder squashes its input to a square.
base_grown_or_full   that crop, or the full image where the scorer is no surer of the crop: it must lead its second
                     candidate by more than a multiple of the full image's lead. No label is read.
base_grown_fused     the weighted mean of both views' scores: weight * crop + (1 - weight) * full.
rgrpo_fused          a rule on top of the trained policy: the same mean for its own region, not grown. Where it crops,
                     that is its crop, with one weight; where it keeps the full image, the region that it names when it
                     must (REGION forced), with another weight, which may be 0: then the full image stands alone.

Each leaves a number or two open. They are chosen on val alone, by CondRecall@1 (docs/method.md, D46). Where the base
policy keeps the full image, so do its rules; where an answer is malformed, it stays a miss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.core.region_search import Reshaping
from pipeline.evaluation.methods import Choice, PoolRanking, QuerySet, Scorer
from pipeline.evaluation.probes.selection import compute_gap
from pipeline.evaluation.rows import FusedRanking, Ranked, box_of
from pipeline.reranking.fusion import fuse_scores
from pipeline.types import Box, Crop, KeepFull, Malformed, Pool

MARGINS: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
"""Parts of the box's own width and height that each side moves outwards."""
GAP_RATIOS: Final = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
"""Multiples of the full image's lead; a ratio, since the scale of scores differs from scorer to scorer."""
WEIGHTS: Final = tuple(step / 10 for step in range(1, 11))
"""Weights of the crop; 1 is the crop alone."""
KEPT_WEIGHTS: Final = (0.0, *WEIGHTS)
"""Weights of the region that the policy would have cropped, had it not kept the full image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The numbers that a rule leaves open; None where it has no such number.

    Attributes:
        margin: that the box grows by on every side, in parts of its width or height.
        is_square: whether its shorter side, in pixels, first grows to the longer one.
        gap_ratio: crop only where the crop's lead exceeds the full image's this many times.
        weight: of the crop's scores in the mean of both, where the policy crops.
        kept_weight: of its region's scores in the mean of both, where the policy keeps the full image.
    """

    margin: float = 0.0
    is_square: bool = False
    gap_ratio: float | None = None
    weight: float | None = None
    kept_weight: float | None = None

    @property
    def reshaping(self) -> Reshaping:
        """How the region lies around the policy's box."""
        return Reshaping(self.margin, self.is_square)


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
    "base_squared": Rule("base", tuple(Setting(margin=margin, is_square=True) for margin in MARGINS)),
    "base_grown_or_full": Rule(
        "base", tuple(Setting(margin=margin, gap_ratio=ratio) for margin in MARGINS for ratio in GAP_RATIOS)
    ),
    "base_grown_fused": Rule(
        "base", tuple(Setting(margin=margin, weight=weight) for margin in MARGINS for weight in WEIGHTS)
    ),
    "rgrpo_fused": Rule(
        "rgrpo", tuple(Setting(weight=weight, kept_weight=kept) for kept in KEPT_WEIGHTS for weight in WEIGHTS)
    ),
}


@dataclass(frozen=True, slots=True)
class Look:
    """One query as a rule sees it.

    Attributes:
        choice: the policy's answer.
        region: the box that it crops, or else the one that it names when it must, grown; None where it names none.
        crop: how that region ranks the pool; None without one.
        full: how the full image does.
    """

    choice: Choice
    region: Box | None
    crop: PoolRanking | None
    full: PoolRanking


@dataclass(frozen=True, slots=True)
class Source:
    """What a policy says about the queries of one split, aligned.

    Attributes:
        greedy: its answers.
        forced: its answers where it must name a region; for a policy that is never forced, the greedy ones again.
    """

    greedy: Sequence[Choice]
    forced: Sequence[Choice]


def choose_setting(rule: Rule, source: Source, val: QuerySet, scorer: Scorer) -> ChosenSetting:
    """Return the setting of highest CondRecall@1; of equals the one of least harm, then the first.

    Args:
        rule: the settings tried.
        source: what its policy says on val.
        val: the only queries that the choice may see.
        scorer: ranks the views.

    Raises:
        ValueError: no pool holds a positive, so nothing can be told apart.
    """
    if not any(pool.has_positive for pool in val.pools):
        raise ValueError("no pool holds a positive: there is nothing to choose a setting by")
    shapes = dict.fromkeys(setting.reshaping for setting in rule.settings)
    looks = {reshaping: take_looks(source, reshaping, val, scorer) for reshaping in shapes}
    tried = [_measure(setting, looks[setting.reshaping], val.pools) for setting in rule.settings]
    # `max` keeps the first of equals, which is the one that the rule's order prefers.
    return max(tried, key=lambda found: (found.cond_recall_at_1, -found.harm_rate))


def rank_by_rule(setting: Setting, source: Source, queries: QuerySet, scorer: Scorer) -> list[Ranked]:
    """Return what the rule makes of each query."""
    looks = take_looks(source, setting.reshaping, queries, scorer)
    return [apply_rule(setting, look, pool) for look, pool in zip(looks, queries.pools, strict=True)]


def take_looks(source: Source, reshaping: Reshaping, queries: QuerySet, scorer: Scorer) -> list[Look]:
    """Return each query's answer, its region reshaped, and how both views rank its pool."""
    boxes = [
        box_of(greedy[0]) or box_of(forced[0]) for greedy, forced in zip(source.greedy, source.forced, strict=True)
    ]
    regions = [
        None if box is None else reshaping.apply(box, query.width_px, query.height_px)
        for box, query in zip(boxes, queries.queries, strict=True)
    ]
    ids = [query.query_id for query in queries.queries]
    named = [(query_id, region) for query_id, region in zip(ids, regions, strict=True) if region is not None]
    crops = iter(scorer.score_views(named))
    full = scorer.score_views([(query_id, None) for query_id in ids])
    return [
        Look(choice, region, None if region is None else next(crops), whole)
        for choice, region, whole in zip(source.greedy, regions, full, strict=True)
    ]


def apply_rule(setting: Setting, look: Look, pool: Pool) -> Ranked:
    """Return the decision of a rule about one query and the ranking that it gives; relevance decides nothing."""
    decision, completion = look.choice
    if isinstance(decision, Malformed):
        return Ranked(decision, completion, None)
    weight = setting.weight if isinstance(decision, Crop) else setting.kept_weight or 0.0
    if look.region is None or look.crop is None or weight == 0.0:
        return Ranked(KeepFull(), completion, look.full)
    if setting.gap_ratio is not None and compute_gap(look.crop) <= setting.gap_ratio * compute_gap(look.full):
        return Ranked(KeepFull(), completion, look.full)
    ranking = look.crop if weight is None else _fuse(weight, look.crop, look.full, pool)
    return Ranked(Crop(look.region), completion, ranking)


def _fuse(weight: float, crop: PoolRanking, full: PoolRanking, pool: Pool) -> FusedRanking:
    # Cosines of one encoder share their scale, so their mean needs no normalisation first. In float64, like all ranks.
    scores_K = fuse_scores(crop.scores_K.astype("float64"), full.scores_K.astype("float64"), weight)
    return FusedRanking.of(scores_K, pool)


def _measure(setting: Setting, looks: Sequence[Look], pools: Sequence[Pool]) -> ChosenSetting:
    ranked = [apply_rule(setting, look, pool) for look, pool in zip(looks, pools, strict=True)]
    first = [row.ranking is not None and row.ranking.outcome.first_rank == 1 for row in ranked]
    lost = [look.full.outcome.first_rank == 1 and not hit for look, hit in zip(looks, first, strict=True)]
    return ChosenSetting(
        setting=setting,
        cond_recall_at_1=sum(first) / sum(pool.has_positive for pool in pools),
        harm_rate=sum(lost) / len(pools),
    )
