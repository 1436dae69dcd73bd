"""Names, order and number formats of the result table; the HTML page and the terminal show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["score", "share"]
NO_VALUE = "n/a"
BEST_PAIR = "rgrpo_minus_best_rule"
"""Of the better r-GRPO over the best rule: report.json names both, as val chose them."""

METHOD_LABELS: Mapping[str, str] = {
    "full": "full image",
    "centre": "centre crop",
    "random": "random crop",
    "base": "base VLM",
    "base_grown": "base, grown",
    "base_squared": "base, squared",
    "base_grown_or_full": "base, grown/full",
    "base_grown_fused": "base, fused",
    "sft": "SFT",
    "rgrpo": "r-GRPO",
    "rgrpo_fused": "r-GRPO, fused",
    "rgrpo_blind": "r-GRPO, blind",
    "perfect": "perfect (ceiling)",
    "oracle": "oracle (ceiling)",
}

METHOD_GROUPS = (
    ("full", "centre", "random"),
    ("base", "base_grown", "base_squared", "base_grown_or_full", "base_grown_fused"),
    ("sft", "rgrpo", "rgrpo_fused", "rgrpo_blind"),
    ("perfect", "oracle"),
)
"""Fixed views; what nobody trained here; what was trained here; ceilings, which know the answer."""

METHOD_NOTES: Mapping[str, str] = {
    "full": "the whole query image: where re-ranking starts from",
    "centre": "the middle half of width and height, always",
    "random": "one seeded random crop a query",
    "base": "the vision-language model before any training here",
    "base_grown": "rule: its box, grown on every side",
    "base_squared": "rule: its box made square in pixels, then grown",
    "base_grown_or_full": "rule: that crop, or the full image where the scorer is surer of that; no label is read",
    "base_grown_fused": "rule: weighted mean of the scores of that crop and of the full image",
    "sft": "after warm-up on labels of the frozen scorer",
    "rgrpo": "after r-GRPO: the method",
    "rgrpo_fused": "a rule on top of r-GRPO: weighted mean of the scores of its region and of the full image, also "
    "where it keeps the full image, if val gives the region a weight there; cropped is then what has such a weight",
    "rgrpo_blind": "the same policy shown a grey picture; its crop is cut from the real one",
    "perfect": "the box around the thing asked about, where the data have one: a ceiling of pointing",
    "oracle": "region search that knows the answers; a ceiling whose boxes partly fit the scorer's noise",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of the table. A score is printed as 0.473, a share as 44.7 %."""

    metric: str
    label: str
    kind: Kind
    note: str


COLUMNS = (
    Column("cond_recall_at_1", "CondR@1", "share", "positive ranked first, among queries whose pool holds one"),
    Column("mrr", "MRR", "score", "mean reciprocal rank, all test queries"),
    Column("ndcg", "NDCG", "score", "at the pool's size, all test queries"),
    Column("recall_at_1", "R@1", "share", "positive ranked first, all test queries"),
    Column("recall_at_5", "R@5", "share", "positive among the first 5"),
    Column("recall_at_10", "R@10", "share", "positive among the first 10"),
    Column("recall_at_20", "R@20", "share", "positive among the first 20"),
    Column("headroom", "headroom", "share", "share of the oracle's gain in CondR@1 that the method gets"),
    Column("rc_rate", "cropped", "share", "queries answered with a region"),
    Column(
        "harm_rate",
        "harmed",
        "share",
        "all queries: the full image ranks a positive first, this view does not",
    ),
    Column("harm_given_first", "harmed | first", "share", "the same among queries that the full image gets right"),
    Column("malformed_rate", "malformed", "share", "answers that are no decision; each counts as a miss"),
    Column("iou", "IoU", "score", "crop against the thing asked about, where it is known"),
)


DECISION_METRICS = frozenset({"rc_rate", "harm_rate", "harm_given_first", "malformed_rate", "iou"})
"""Metrics of what a method decides; the others are metrics of the ranking."""


SEARCH_LABELS: Final[Mapping[str, str]] = {
    "full": "full image",
    "reranked": "re-ranking alone",
    "base": "base VLM",
    "base_grown": "base, grown",
    "base_squared": "base, squared",
    "base_union": "base, merged",
    "sft": "SFT",
    "rgrpo": "r-GRPO",
    "rgrpo_union": "r-GRPO, merged",
    "perfect": "perfect (ceiling)",
}
"""Methods of searching again, in the order shown."""

SEARCH_GROUPS: Final = (
    ("full", "reranked"),
    ("base", "base_grown", "base_squared", "base_union"),
    ("sft", "rgrpo", "rgrpo_union"),
    ("perfect",),
)
"""What searches once; rules that nobody trained; what was trained here; a ceiling."""

SEARCH_NOTES: Final[Mapping[str, str]] = {
    "full": "searches once, with the whole query image: the pool that re-ranking orders",
    "reranked": "searches once; the better r-GRPO of the first table orders that pool by its view",
    "base": "searches with the box that the vision-language model names before any training here",
    "base_grown": "rule: searches with that box, grown on every side",
    "base_squared": "rule: searches with that box made square in pixels, then grown",
    "base_union": "rule: what the grown box and the full image find, merged",
    "sft": "searches with the region named after warm-up; where it keeps the full image, its pool stays",
    "rgrpo": "searches with the trained policy's region; where it keeps the full image, its pool stays",
    "rgrpo_union": "what that region and the full image find, merged",
    "perfect": "searches with the box around the thing asked about, where the data have one: a ceiling of pointing",
}

SEARCH_CHOSEN: Final = ("base_grown", "base_squared", "base_union", "rgrpo_union")
"""Methods whose numbers val chooses; the others leave nothing open."""

SEARCH_COLUMNS: Final = (
    Column("recall_at_1", "R@1", "share", "relevant document first"),
    Column("recall_at_5", "R@5", "share", "relevant document among the first 5"),
    Column("recall_at_10", "R@10", "share", "relevant document among the first 10"),
    Column("recall_at_20", "R@20", "share", "relevant document among the first 20"),
    Column("mrr", "MRR", "score", "mean reciprocal rank"),
    Column("ndcg", "NDCG", "score", "at the number of documents that a query ends with"),
    Column("harm_at_1", "harm at 1", "share", "the full image ranks a relevant document first, the method does not"),
    Column("harm_at_20", "harm at 20", "share", "the full image has one among its first 20, the method has not"),
    Column("rc_rate", "cropped", "share", "queries answered with a region"),
    Column("malformed_rate", "malformed", "share", "answers that are no decision; each finds nothing"),
)
"""All over all test queries, whether or not the full image's pool holds a relevant document."""


def name_search_pair(pair: str, choices: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the two methods of a paired difference of searching again are called.

    >>> name_search_pair("rgrpo_minus_best_rule", {"headline": "rgrpo_union", "best_rule": "base_union"})
    ('r-GRPO, merged', 'best rule (base, merged)')
    """
    other = pair.removeprefix("rgrpo_minus_")
    bar = f"best rule ({SEARCH_LABELS[choices['best_rule']]})" if other == "best_rule" else SEARCH_LABELS[other]
    return SEARCH_LABELS[choices["headline"]], bar


def describe_search_setting(chosen: Mapping[str, Any]) -> str:
    """Return in words how a method searches again.

    >>> describe_search_setting({"margin": 0.1, "is_square": True, "fusion": None})
    "box made square, grown by 10 % a side; what it finds takes the pool's place"
    >>> describe_search_setting({"margin": 0.0, "is_square": False, "fusion": 0.7})
    'box not grown; merged with the pool, scores 70 % crop, 30 % full image'
    >>> describe_search_setting({"margin": 0.0, "is_square": False, "fusion": "rrf"})
    'box not grown; merged with the pool by Reciprocal Rank Fusion'
    """
    box, fusion = _describe_box(chosen), chosen["fusion"]
    if fusion is None:
        return f"{box}; what it finds takes the pool's place"
    if fusion == "rrf":
        return f"{box}; merged with the pool by Reciprocal Rank Fusion"
    return f"{box}; merged with the pool, scores {_describe_mean(fusion, 'crop')}"


def name_pair(pair: str, report: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the two methods of a paired difference are called; the best ones by the names that val gave them."""
    first, second = pair.split("_minus_")
    if second != "best_rule":
        return METHOD_LABELS[first], METHOD_LABELS[second]
    if report["best_rule"] is None:
        return METHOD_LABELS[first], "best rule (val names none)"
    return METHOD_LABELS[report["best_rgrpo"]], f"best rule ({METHOD_LABELS[report['best_rule']]})"


def describe_setting(chosen: Mapping[str, Any]) -> str:
    """Return a rule's numbers in words.

    >>> describe_setting({"margin": 0.1, "is_square": False, "gap_ratio": None, "weight": 0.6, "kept_weight": None})
    'box grown by 10 % a side; scores 60 % crop, 40 % full image'
    >>> describe_setting({"margin": 0.0, "is_square": False, "gap_ratio": None, "weight": 1, "kept_weight": 0.25})
    'box not grown; scores 100 % crop, 0 % full image; where it keeps that 25 % forced region, 75 % full image'
    """
    words = [_describe_box(chosen)]
    if chosen["gap_ratio"] is not None:
        lead = f"{chosen['gap_ratio']:g} times the full image's lead"
        words.append(f"crop where its best candidate leads by more than {lead}")
    if chosen["weight"] is not None:
        words.append(f"scores {_describe_mean(chosen['weight'], 'crop')}")
    if chosen["kept_weight"] is not None:
        words.append(f"where it keeps that {_describe_mean(chosen['kept_weight'], 'forced region')}")
    return "; ".join(words)


def _describe_box(chosen: Mapping[str, Any]) -> str:
    margin = chosen["margin"]
    grown = f"grown by {100 * margin:g} % a side" if margin else "not grown"
    return f"box made square, {grown}" if chosen["is_square"] else f"box {grown}"


def _describe_mean(weight: float, view: str) -> str:
    return f"{100 * weight:g} % {view}, {100 - 100 * weight:g} % full image"


def format_number(value: float, kind: Kind) -> str:
    """Return a figure as people read it.

    >>> format_number(0.4731, "score"), format_number(0.4731, "share")
    ('0.473', '47.3 %')
    """
    return f"{value:.3f}" if kind == "score" else f"{100.0 * value:.1f} %"


def format_mean(interval: Mapping[str, Any] | None, kind: Kind) -> str:
    """Return the mean, or a dash where there is no value."""
    return NO_VALUE if interval is None else format_number(interval["mean"], kind)


def format_range(interval: Mapping[str, Any] | None, kind: Kind) -> str:
    """Return the interval without its unit, such as `42.1 to 47.0`; nothing where there is no value."""
    if interval is None:
        return ""
    low, high = (format_number(interval[end], kind).removesuffix(" %") for end in ("low", "high"))
    return f"{low} to {high}"


def format_difference(difference: Mapping[str, Any] | None, kind: Kind) -> str:
    """Return a paired difference with interval and p value, such as `+3.1 points (1.2 to 5.0, p = 0.002)`."""
    if difference is None:
        return NO_VALUE
    scale, unit, digits = (100.0, " points", 1) if kind == "share" else (1.0, "", 3)
    mean, low, high = (f"{scale * difference[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean}{unit} ({low} to {high}, p = {difference['p_value']:.2g})"
