"""Charts of the two trainings: figures by optimiser step, parts of the reward, balance of the decisions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import altair as alt
import numpy as np

from pipeline.report.theme import FULL, INK, MALFORMED, PERCENT, POLICY, REGION, AnyChart, Row, scale_of
from pipeline.types import CurvePoint, Rollout

Series = Mapping[int, float]
"""Step -> value."""

REWARD_PARTS: Final[Mapping[str, tuple[str, str]]] = {
    "reward_mrr": ("MRR", "var(--part-1)"),
    "reward_ndcg": ("NDCG", "var(--part-2)"),
    "reward_rank": ("log rank", "var(--part-3)"),
    "reward_margin": ("margin", "var(--part-4)"),
}
ARM_COLOURS: Final[Mapping[str, str]] = {"region": REGION, "full": FULL, "free": INK}
_STEP = alt.X("step:Q", title="optimiser step", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, grid=False))


def collect_series(points: Iterable[CurvePoint]) -> dict[str, dict[int, float]]:
    """Return metric -> step -> value."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for point in points:
        series[point.metric][point.step] = point.value
    return dict(series)


def compute_arm_rewards(rollouts: Iterable[Rollout]) -> dict[str, dict[int, float]]:
    """Return arm -> step -> mean reward."""
    rewards: dict[str, dict[int, list[float]]] = {arm: defaultdict(list) for arm in ARM_COLOURS}
    for rollout in rollouts:
        rewards[rollout.arm][rollout.step].append(rollout.reward)
    return {
        arm: {step: float(np.mean(values)) for step, values in sorted(steps.items())}
        for arm, steps in rewards.items()
        if steps
    }


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running mean over `window` values, centred; at the ends over those there are.

    >>> smooth([0.0, 3.0, 6.0, 0.0], 3)
    [1.5, 3.0, 3.0, 3.0]
    """
    before, after = window // 2, window - window // 2
    return [float(np.mean(values[max(0, i - before) : i + after])) for i in range(len(values))]


def choose_window(num_steps: int) -> int:
    """Return the odd number of steps that a running mean covers: about a tenth of the training, 3 at least."""
    return max(3, num_steps // 10 // 2 * 2 + 1)


def draw_curve(series: Series, axis_title: str, *, share: bool = False) -> AnyChart:
    """Return one figure by step: thin as logged, thick its running mean."""
    return _draw_lines({axis_title: series}, {axis_title: POLICY}, axis_title, share=share, legend=False)


def draw_arm_rewards(rewards: Mapping[str, Series]) -> AnyChart:
    """Return the mean reward of each arm by step."""
    return _draw_lines(rewards, {arm: ARM_COLOURS[arm] for arm in rewards}, "mean reward")


def draw_free_rates(cropped: Series, malformed: Series) -> AnyChart:
    """Return how the rows that were free to decide did decide, by step."""
    series = {"cropped": cropped, "malformed": malformed}
    return _draw_lines(series, {"cropped": REGION, "malformed": MALFORMED}, "share of free rows", share=True)


def draw_wanted_decision(target: Series, p_region: Series) -> AnyChart:
    """Return the p(REGION) that the arms' rewards ask for, and the policy's, by step."""
    series = {"wanted": target, "policy": p_region}
    return _draw_lines(series, {"wanted": INK, "policy": REGION}, "p(REGION)", share=True)


def draw_reward_parts(parts: Mapping[str, Series]) -> AnyChart:
    """Return the weighted parts of the reward stacked by step, gains above 0 and losses below, with their sum."""
    rows: list[Row] = []
    sums: list[Row] = []
    for step in sorted(parts["reward_mrr"]):
        edges = {True: 0.0, False: 0.0}
        for metric, (name, _) in REWARD_PARTS.items():
            value = parts[metric][step]
            start = edges[value >= 0]
            edges[value >= 0] = start + value
            rows.append({"step": step, "part": name, "value": value, "start": start, "end": start + value})
        sums.append({"step": step, "value": edges[True] + edges[False]})
    bars = (
        alt.Chart(alt.Data(values=rows))
        .transform_calculate(left="datum.step - 0.42", right="datum.step + 0.42")
        .mark_rect()
        .encode(
            x=alt.X("left:Q", title="optimiser step", scale=alt.Scale(nice=False), axis=alt.Axis(grid=False)),
            x2="right:Q",
            y=alt.Y("start:Q", title="mean weighted gain"),
            y2="end:Q",
            color=scale_of("part", dict(REWARD_PARTS.values())),
            tooltip=["step:Q", "part:N", alt.Tooltip("value:Q", title="weighted gain", format="+.4f")],
        )
    )
    line = alt.Chart(alt.Data(values=sums)).mark_line(color=INK, strokeWidth=1.5).encode(x="step:Q", y="value:Q")
    return alt.layer(bars, line).properties(height=240)


def draw_decision_balance(p_region: Series, p_full: Series) -> AnyChart:
    """Return the policy's probability of opening with each decision, stacked to 1, by step."""
    colours = {"REGION": REGION, "FULL": FULL, "anything else": MALFORMED}
    rows: list[Row] = []
    for step in sorted(p_region.keys() & p_full.keys()):
        shares = (p_region[step], p_full[step], max(0.0, 1.0 - p_region[step] - p_full[step]))
        rows += [
            {"step": step, "opening": name, "p": share, "order": order}
            for order, (name, share) in enumerate(zip(colours, shares, strict=True))
        ]
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_area(opacity=0.9)
        .encode(
            x=_STEP,
            y=alt.Y(
                "p:Q",
                title="probability",
                stack="zero",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=PERCENT, tickCount=5),
            ),
            color=scale_of("opening", colours),
            order="order:Q",
            tooltip=["step:Q", "opening:N", alt.Tooltip("p:Q", title="probability", format=".2%")],
        )
        .properties(height=220)
    )
    return chart


def _draw_lines(
    series: Mapping[str, Series],
    colours: Mapping[str, str],
    title: str,
    *,
    share: bool = False,
    legend: bool = True,
) -> AnyChart:
    rows: list[Row] = []
    for name, values in series.items():
        steps = sorted(values)
        means = smooth([values[step] for step in steps], choose_window(len(steps)))
        rows += [
            {"step": step, "series": name, "value": values[step], "smooth": mean}
            for step, mean in zip(steps, means, strict=True)
        ]
    form = ".1%" if share else ".4g"
    axis = alt.Axis(format=PERCENT if share else "~g", tickCount=5)
    colour = scale_of("series", colours, lines=True)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_STEP,
        color=colour if legend else alt.value(next(iter(colours.values()))),
        tooltip=[
            "step:Q",
            "series:N",
            alt.Tooltip("value:Q", title="as logged", format=form),
            alt.Tooltip("smooth:Q", title="running mean", format=form),
        ],
    )
    # A share starts at 0, so that small ones look small; other figures fill their chart.
    highest = max(row["value"] for row in rows)
    scale = alt.Scale(domain=[0, max(highest, 0.05)]) if share else alt.Scale(zero=False)
    raw = base.mark_line(strokeWidth=1, opacity=0.45).encode(y=alt.Y("value:Q", title=title, scale=scale, axis=axis))
    mean = base.mark_line(strokeWidth=2.5).encode(y="smooth:Q")
    # Lines are hard to hit with a pointer.
    points = base.mark_point(size=120, opacity=0).encode(y="value:Q")
    return alt.layer(raw, mean, points).properties(height=220 if legend else 170)
