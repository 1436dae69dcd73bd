"""What the policies say in an evaluation: the base, SFT and r-GRPO, asked greedily, and r-GRPO in other ways too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.config import Params
from pipeline.core.seeds import derive_seed
from pipeline.evaluation import methods as m
from pipeline.evaluation.probes.selection import Samples, list_cropped
from pipeline.types import Query
from pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedPolicy:
    """What the trained policy says when it is asked in other ways than greedily and freely.

    Attributes:
        forced_val: answers to the val queries, REGION forced.
        forced_test: answers to the test queries, REGION forced.
        samples: sampled regions of the test queries that it crops.
    """

    forced_val: Sequence[m.Answer]
    forced_test: Sequence[m.Answer]
    samples: Samples

    def list_forced(self, split: Literal["val", "test"]) -> list[m.Choice]:
        """Return the answers with REGION forced as choices."""
        answers = self.forced_val if split == "val" else self.forced_test
        return [(answer.decision, answer.completion) for answer in answers]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Everything that the policies are asked for.

    Attributes:
        val: base, sft, rgrpo -> greedy choices about the val queries.
        test: the same and rgrpo_blind, about the test queries.
        probed: r-GRPO's further answers.
    """

    val: dict[str, list[m.Choice]]
    test: dict[str, list[m.Choice]]
    probed: ProbedPolicy


def ask_policies(params: Params, workspace: Workspace, val: m.QuerySet, test: m.QuerySet) -> Answers:
    """Ask the three policies, one loaded at a time.

    Raises:
        ModelError: one cannot be loaded.
        DataError: a picture cannot be read.
    """
    from pipeline.policy.vllm_engine import load_asked_policy

    said: dict[str, dict[str, list[m.Choice]]] = {"val": {}, "test": {}}

    def ask(policy: m.DecidingPolicy, name: str) -> None:
        for split, queries in (("test", test.queries), ("val", val.queries)):
            shown = name if split == "test" else f"{name}, val"
            said[split][name] = m.ask_policy(policy, queries, workspace.data_dir, params, name=shown)

    def load(path: str | Path) -> m.DecidingPolicy:
        return load_asked_policy(path, params.policy, params.batches.policy)

    ask(load(params.policy.path), "base")
    ask(load(workspace.sft_dir), "sft")
    trained = load(workspace.policy_dir)
    ask(trained, "rgrpo")
    said["test"]["rgrpo_blind"] = m.ask_policy(
        trained, test.queries, workspace.data_dir, params, name="rgrpo_blind", blind=True
    )
    probed = _probe(trained, params, workspace, val, test, said["test"]["rgrpo"])
    return Answers(val=said["val"], test=said["test"], probed=probed)


def _probe(
    policy: m.DecidingPolicy,
    params: Params,
    workspace: Workspace,
    val: m.QuerySet,
    test: m.QuerySet,
    greedy: Sequence[m.Choice],
) -> ProbedPolicy:
    """Ask about every val and test query with REGION forced, and draw regions where the greedy answer crops."""

    def force(queries: Sequence[Query], name: str) -> list[m.Answer]:
        forced = partial(policy.decide, force_region=True)
        return m.ask_in_batches(forced, queries, workspace.data_dir, params, name=name)

    cropped = list_cropped(test.queries, greedy)
    draw = partial(policy.sample_regions, num_samples=params.evaluate.num_samples)
    seeds = [derive_seed(params.seed, query.query_id) for query in cropped]
    drawn = m.ask_in_batches(draw, cropped, workspace.data_dir, params, name="sampled regions", seeds=seeds)
    return ProbedPolicy(
        forced_val=force(val.queries, "val, REGION forced"),
        forced_test=force(test.queries, "test, REGION forced"),
        samples={query.query_id: answers for query, answers in zip(cropped, drawn, strict=True)},
    )
