"""Which charts of the trainings the page shows, each with the words that say what to see in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report import training_charts as training
from pipeline.report.result_figures import Figure, make_figure
from pipeline.report.training_charts import REWARD_PARTS, Series
from pipeline.types import CurvePoint, Rollout

SeriesByMetric = Mapping[str, Series]


@dataclass(frozen=True, slots=True)
class _Curve:
    """One figure by step, and the words that go with it."""

    metric: str
    title: str
    axis: str
    note: str
    share: bool = False

    def draw(self, series: Series) -> Figure:
        note = f"{self.note} {_count_steps(series)}"
        return make_figure(self.metric, self.title, note, training.draw_curve(series, self.axis, share=self.share))


_SFT = (
    _Curve("sft_loss", "SFT loss", "nats a token", "Cross-entropy of the label's tokens."),
    _Curve(
        "sft_token_accuracy",
        "SFT token accuracy",
        "share of tokens",
        "Share of the label's tokens that the policy ranks first, given those before.",
        share=True,
    ),
)
_RGRPO = (
    _Curve("reward", "Reward", "mean reward", "Mean over all completions of a step."),
    _Curve(
        "kl",
        "KL of the box tokens",
        "nats a token",
        "How far what follows an opening has moved from the SFT policy, as estimated from the drawn tokens. With "
        "factorised advantages openings count 0 here; the decision has a KL of its own.",
    ),
    _Curve("entropy", "Entropy", "nats a token", "Of what the policy samples; at 0 it tries nothing new."),
)
_NO_SIGNAL = _Curve(
    "zero_signal_groups",
    "Groups without signal",
    "share of groups",
    "Share of groups whose rows all earn the same, so that nothing is learned from them.",
    share=True,
)


_DECISION = (
    _Curve(
        "decision_loss",
        "Loss of the decision",
        "nats a query",
        "Cross-entropy of REGION and FULL with what is wanted, and the weighted KL; never below the entropy of what "
        "is wanted.",
    ),
    _Curve(
        "decision_kl",
        "KL of the decision",
        "nats a query",
        "How far REGION, FULL and neither have moved from the SFT policy; exact, none of it estimated.",
    ),
)


def draw_training_figures(
    warmup_curve: Sequence[CurvePoint], train_curve: Sequence[CurvePoint], rollouts: Sequence[Rollout]
) -> dict[str, list[Figure]]:
    """Return section -> figures; a figure whose series was not logged is left out.

    Args:
        warmup_curve: figures of the SFT by step.
        train_curve: figures of r-GRPO by step.
        rollouts: completions of r-GRPO.
    """
    series = training.collect_series(train_curve)
    return {
        "sft": _draw_curves(_SFT, training.collect_series(warmup_curve)),
        "rgrpo": _draw_curves(_RGRPO, series),
        "reward": [*_draw_parts(series), *_draw_arms(rollouts)],
        "decisions": _draw_decisions(series),
    }


def _draw_curves(curves: Sequence[_Curve], series: SeriesByMetric) -> list[Figure]:
    return [curve.draw(series[curve.metric]) for curve in curves if curve.metric in series]


def _draw_parts(series: SeriesByMetric) -> list[Figure]:
    if not all(metric in series for metric in REWARD_PARTS):
        return []
    note = (
        "The four weighted gains over the full image, before floor and scale, averaged over all completions (a kept "
        "picture gains 0); stacked, losses below 0. Line: their sum."
    )
    return [make_figure("reward_parts", "Parts of the reward", note, training.draw_reward_parts(series))]


def _draw_arms(rollouts: Sequence[Rollout]) -> list[Figure]:
    if not rollouts:
        return []
    rewards = training.compute_arm_rewards(rollouts)
    note = (
        f"Mean reward of the rows made to crop (region), made to keep (full) and left free; {len(rollouts):,} "
        f"completions. {_count_steps(next(iter(rewards.values())))}"
    )
    return [make_figure("arm_rewards", "Reward by arm", note, training.draw_arm_rewards(rewards))]


def _draw_decisions(series: SeriesByMetric) -> list[Figure]:
    figures = []
    if {"p_region", "p_full"} <= series.keys():
        note = "Mean probability that the policy gives each opening, over the queries of a step; as logged."
        chart = training.draw_decision_balance(series["p_region"], series["p_full"])
        figures.append(make_figure("decision_balance", "Decision balance", note, chart))
    if {"p_region", "decision_target"} <= series.keys():
        note = (
            "What the rewards of the two arms want p(REGION) to be, and what it is; means over the queries of a step. "
            f"Equal means may hide queries that differ. {_count_steps(series['p_region'])}"
        )
        chart = training.draw_wanted_decision(series["decision_target"], series["p_region"])
        figures.append(make_figure("decision_target", "Wanted decision", note, chart))
    figures += _draw_curves(_DECISION, series)
    if {"free_region_rate", "malformed_rate"} <= series.keys():
        rates = series["free_region_rate"], series["malformed_rate"]
        note = f"How the rows that were free to decide did decide. {_count_steps(rates[0])}"
        figures.append(make_figure("free_rates", "RC rate of free rows", note, training.draw_free_rates(*rates)))
    return figures + _draw_curves([_NO_SIGNAL], series)


def _count_steps(series: Series) -> str:
    return f"Thin: as logged, {len(series)} steps; thick: running mean over {training.choose_window(len(series))}."
