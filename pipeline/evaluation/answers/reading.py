"""The answers that the stage answer has written, as evaluate scores them: by split and policy, aligned with queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.errors import StageError
from pipeline.evaluation.answers.meta import hash_queries, load_meta
from pipeline.evaluation.methods import Choice
from pipeline.files.store import load_answers
from pipeline.types import Answer, Query, Split, Way
from pipeline.workspace import Workspace

Samples = Mapping[str, Sequence[Answer]]
"""Query id -> sampled answers in the order drawn, for the queries that the greedy answer crops."""
_POLICIES: Final = ("base", "sft", "rgrpo")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedPolicy:
    """What the trained policy says when it is asked in other ways than greedily and freely.

    Attributes:
        forced_val: answers to the val queries, REGION forced.
        forced_test: answers to the test queries, REGION forced.
        samples: sampled regions of the test queries that it crops.
        num_samples: of each of them.
    """

    forced_val: Sequence[Answer]
    forced_test: Sequence[Answer]
    samples: Samples
    num_samples: int

    def list_forced(self, split: Literal["val", "test"]) -> list[Choice]:
        """Return the answers with REGION forced as choices."""
        return _choose(self.forced_val if split == "val" else self.forced_test)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Everything that the policies were asked for.

    Attributes:
        val: base, sft, rgrpo -> greedy choices about the val queries.
        test: the same and rgrpo_blind, about the test queries.
        probed: r-GRPO's further answers.
        policy_digest: of the policy that is called rgrpo.
    """

    val: dict[str, list[Choice]]
    test: dict[str, list[Choice]]
    probed: ProbedPolicy
    policy_digest: str


def read_answers(workspace: Workspace, val: Sequence[Query], test: Sequence[Query]) -> Answers:
    """Return the answers to these queries.

    Raises:
        StageError: answer has not run, or on other queries.
    """
    folder = workspace.answers_dir
    meta = load_meta(folder)
    if meta.queries_sha256 != hash_queries([*val, *test]):
        raise StageError(f"{folder} answers other queries than lie in {workspace.tables_dir}; run answer again")
    rows = _Rows(load_answers(folder / "answers.parquet"))
    return Answers(
        val={name: _choose(rows.align(name, "free", val)) for name in _POLICIES},
        test={name: _choose(rows.align(name, "free", test)) for name in _POLICIES}
        | {"rgrpo_blind": _choose(rows.align("rgrpo", "blind", test))},
        probed=ProbedPolicy(
            forced_val=rows.align("rgrpo", "forced", val),
            forced_test=rows.align("rgrpo", "forced", test),
            samples=rows.collect_samples("rgrpo"),
            num_samples=meta.num_samples,
        ),
        policy_digest=meta.policy_digest,
    )


class _Rows:
    """The table, by policy, way and query."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._found: dict[tuple[str, Way, Split, str], list[Answer]] = defaultdict(list)
        for answer in answers:
            self._found[answer.policy, answer.way, answer.split, answer.query_id].append(answer)

    def align(self, policy: str, way: Way, queries: Sequence[Query]) -> list[Answer]:
        """Return the one answer to each query."""
        answers = []
        for query in queries:
            (answer,) = self._found[policy, way, query.split, query.query_id]
            answers.append(answer)
        return answers

    def collect_samples(self, policy: str) -> dict[str, list[Answer]]:
        """Return query id -> what was drawn, in the order written."""
        return {
            query_id: answers
            for (name, way, _, query_id), answers in self._found.items()
            if (name, way) == (policy, "sampled")
        }


def _choose(answers: Sequence[Answer]) -> list[Choice]:
    return [(answer.decision, answer.completion) for answer in answers]
