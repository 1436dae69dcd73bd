"""Names, order and number formats of the result table; the HTML page and the terminal show the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["score", "share"]
NO_VALUE = "n/a"

METHOD_LABELS: Mapping[str, str] = {
    "full": "full image",
    "centre": "centre crop",
    "random": "random crop",
    "base": "base VLM",
    "sft": "SFT",
    "rgrpo": "r-GRPO",
    "rgrpo_blind": "r-GRPO, blind",
    "oracle": "oracle (ceiling)",
}

METHOD_NOTES: Mapping[str, str] = {
    "full": "the whole query image: where re-ranking starts from",
    "centre": "the middle half of width and height, always",
    "random": "one seeded random crop a query",
    "base": "the vision-language model before any training here",
    "sft": "after warm-up on labels of the frozen scorer",
    "rgrpo": "after r-GRPO: the method",
    "rgrpo_blind": "the same policy shown a grey picture; its crop is cut from the real one",
    "oracle": "best view of region search with the relevance known: no method can know it",
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
