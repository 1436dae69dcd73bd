"""The arms of the ablations and the tables that set them side by side.

Every distinct arm is trained once, whatever the number of tables it stands in: `full`, the method as params.yaml has
it, is the last row of two tables and the reference of three others. The numbers of the paper (Hu and Tu, 2026) are
those of its reward ablation; where it measured nothing like a table of ours, the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import ValidationError

from pipeline.config import Params
from pipeline.errors import ConfigError

Start = Literal["sft", "base", "collapsed"]
Value = float | bool | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to train a policy.

    Attributes:
        name: also its DVC stage, its folder and its MLflow run.
        overrides: what differs from params.yaml, as `section.name`.
        start: the policy before r-GRPO, which is also the KL's reference: after SFT, the base model, or the SFT policy
            collapsed to FULL (see collapse.py).
        step_factor: times `ablation.max_steps`.
    """

    name: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    start: Start = "sft"
    step_factor: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An arm in a table.

    Attributes:
        arm: name of the arm.
        title: what it is called there.
        above: the arm that it must beat for the table's claim, None where nothing is claimed.
        paper_mrr: the paper's MRR on InfoSeek and on E-VQA, where it measured this row.
    """

    arm: str
    title: str
    above: str | None = None
    paper_mrr: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmTable:
    """Arms that are compared.

    Attributes:
        name: key in summary.json.
        title: its heading.
        metric: what the claims are about.
        reference: the arm that the differences are taken from.
        rows: in the order shown.
        source: what the paper says of it, in a sentence.
    """

    name: str
    title: str
    metric: str
    reference: str
    rows: tuple[Row, ...]
    source: str


_STOCK: Final[Mapping[str, Value]] = {"train.num_region": 0, "train.num_full": 0, "train.factorised": False}
_NOT_IN_PAPER: Final = "not in the paper"

ARMS: Final[Mapping[str, Arm]] = MappingProxyType(
    {
        arm.name: arm
        for arm in (
            Arm(name="full"),
            Arm(name="stock", overrides=_STOCK),
            Arm(name="balanced", overrides={"train.factorised": False}),
            Arm(
                name="reward_mrr",
                overrides={"reward.weight_ndcg": 0.0, "reward.weight_rank": 0.0, "reward.weight_margin": 0.0},
            ),
            Arm(name="reward_ndcg", overrides={"reward.weight_rank": 0.0, "reward.weight_margin": 0.0}),
            Arm(name="reward_rank", overrides={"reward.weight_margin": 0.0}),
            Arm(name="no_sft", start="base"),
            Arm(name="no_kl", overrides={"train.beta": 0.0}),
            Arm(name="group_4", overrides={"train.group_size": 4, "train.num_region": 2, "train.num_full": 1}),
            Arm(name="group_16", overrides={"train.group_size": 16, "train.num_region": 14, "train.num_full": 1}),
            Arm(name="collapsed_stock", overrides=_STOCK, start="collapsed", step_factor=3),
            Arm(name="collapsed_balanced", start="collapsed", step_factor=3),
        )
    }
)

COLLAPSED: Final = ("collapsed_stock", "collapsed_balanced")

TABLES: Final = (
    ArmTable(
        name="groups",
        title="Groups and advantages",
        metric="cond_recall_at_1",
        reference="stock",
        rows=(
            Row(arm="stock", title="stock GRPO"),
            Row(arm="balanced", title="+ balanced groups", above="stock"),
            Row(arm="full", title="+ factorised"),
        ),
        source="the paper holds balanced groups above stock GRPO, without figures; factorised is ours",
    ),
    ArmTable(
        name="reward",
        title="Parts of the reward",
        metric="mrr",
        reference="reward_mrr",
        rows=(
            Row(arm="reward_mrr", title="dMRR only", paper_mrr=(0.611, 0.408)),
            Row(arm="reward_ndcg", title="+ dNDCG", above="reward_mrr", paper_mrr=(0.613, 0.425)),
            Row(arm="reward_rank", title="+ dRank", above="reward_ndcg", paper_mrr=(0.613, 0.426)),
            Row(arm="full", title="+ dMargin", above="reward_rank", paper_mrr=(0.706, 0.473)),
        ),
        source="the paper's reward ablation: MRR on InfoSeek and on E-VQA, each part at or above the one before",
    ),
    ArmTable(
        name="start",
        title="SFT warm-up",
        metric="cond_recall_at_1",
        reference="full",
        rows=(Row(arm="full", title="with SFT"), Row(arm="no_sft", title="without SFT")),
        source=_NOT_IN_PAPER,
    ),
    ArmTable(
        name="kl",
        title="KL to the start",
        metric="cond_recall_at_1",
        reference="full",
        rows=(Row(arm="full", title="KL on"), Row(arm="no_kl", title="KL off")),
        source=_NOT_IN_PAPER,
    ),
    ArmTable(
        name="group_size",
        title="Group size, equal completions per step",
        metric="cond_recall_at_1",
        reference="full",
        rows=(
            Row(arm="group_4", title="group of 4"),
            Row(arm="full", title="group as set"),
            Row(arm="group_16", title="group of 16"),
        ),
        source=_NOT_IN_PAPER,
    ),
    ArmTable(
        name="collapsed",
        title="From a policy collapsed to FULL, three times the steps",
        metric="cond_recall_at_1",
        reference="collapsed_stock",
        rows=(
            Row(arm="collapsed_stock", title="stock GRPO"),
            Row(arm="collapsed_balanced", title="balanced + factorised", above="collapsed_stock"),
        ),
        source="the paper gives collapse as the reason for balanced groups, without figures",
    ),
)


def apply_arm(arm: Arm, params: Params, seed: int) -> Params:
    """Return the parameters that one seed of an arm is trained with.

    Steps come from `ablation.max_steps` and the arm's factor, and the learning rate warms up for at most half of
    them. Another group size takes as many queries as keep the number of completions of a step.

    Raises:
        ConfigError: the result breaks a rule of config.py, or the completions of a step do not divide by the group.
    """
    if not params.train.num_region:
        raise ConfigError("train.num_region is 0: the ablations take the balanced method away part by part; set it")
    tree: dict[str, Any] = params.model_dump(by_alias=True)
    for name, value in arm.overrides.items():
        section, _, key = name.partition(".")
        tree[section][key] = value
    train = tree["train"]
    num_completions = params.train.queries_per_step * params.train.group_size
    train["queries_per_step"], rest = divmod(num_completions, train["group_size"])
    if rest or not train["queries_per_step"]:
        raise ConfigError(f"arm {arm.name}: {num_completions} completions a step do not divide by its group size")
    train["max_steps"] = params.ablation.max_steps * arm.step_factor
    train["warmup_steps"] = min(params.train.warmup_steps, params.ablation.max_steps // 2)
    try:
        return Params.model_validate({**tree, "seed": seed})
    except ValidationError as error:
        raise ConfigError(f"arm {arm.name}: {error.errors()[0]['msg']}") from error


def find_arm(name: str) -> Arm:
    """Return the arm of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ARMS:
        raise ConfigError(f"unknown arm {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]
