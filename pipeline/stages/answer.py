"""Stage answer: every policy is asked everything that the evaluation needs; afterwards none is loaded again.

    answers/answers.parquet   one row per answer
    answers/meta.json         whose answers to what: digests of the policies, hash of the queries

One policy is in memory at a time. What a killed run had heard from a policy lies in checkpoints/answer and is taken up
by the next run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from pipeline.config import Params
from pipeline.core.seeds import derive_seed
from pipeline.errors import StageError
from pipeline.evaluation.answers.asking import DecidingPolicy, Reply, ask_in_batches, list_cropped
from pipeline.evaluation.answers.meta import AnswersMeta, hash_queries, save_meta
from pipeline.files.store import load_answers, load_queries, replace_dir, save_answers
from pipeline.models.model_folder import check_base, compute_model_digest
from pipeline.policy.families import check_pictures, load_frames
from pipeline.runs.tracking import StageRun
from pipeline.types import Answer, Malformed, Query, Way
from pipeline.workspace import Workspace

logger = logging.getLogger(__name__)

_SECTIONS: Final = {"seed", "threads", "data", "policy", "answer"}
_CODE: Final = ("core", "models", "policy", "evaluation/answers")
_PACKAGE_DIR: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class _Asked:
    """The queries that policies are asked about."""

    val: Sequence[Query]
    test: Sequence[Query]

    def list_all(self) -> list[Query]:
        return [*self.val, *self.test]


def run(params: Params, workspace: Workspace, run: StageRun) -> dict[str, float]:
    """Ask base, SFT and r-GRPO and write `answers_dir`.

    Returns:
        The number of answers, and for each policy and way of asking `POLICY.WAY.num_answers` and
        `POLICY.WAY.malformed_rate`.

    Raises:
        StageError: an earlier stage has not run, or there is no test query.
        ModelError: a policy cannot be loaded, was trained on another base, or cannot read some query's picture.
        DataError: a picture cannot be read.
    """
    asked = _load_asked(workspace)
    folders = _find_policies(params, workspace)
    check_base(params.policy.path, (workspace.sft_dir, workspace.policy_dir))
    check_pictures(load_frames(params.policy.path), asked.list_all())
    digests = {name: compute_model_digest(folder) for name, folder in folders.items()}
    checkpoints_dir = workspace.checkpoints_dir / "answer" / _name_run(params, workspace, asked, digests["base"])
    answers: list[Answer] = []
    num_heard, started = 0, time.monotonic()
    for name, folder in folders.items():
        path = checkpoints_dir / f"{name}-{digests[name][:16]}.parquet"
        if path.is_file():
            logger.info("answer: %s: taken from the run before", name)
        else:
            save_answers(path, heard := _ask(name, folder, asked, params, workspace))
            num_heard += len(heard)
        answers += load_answers(path)
    if num_heard:
        run.note({"answers_per_s": num_heard / (time.monotonic() - started)})
    with replace_dir(workspace.answers_dir) as out:
        save_answers(out / "answers.parquet", answers)
        save_meta(out, _describe(digests, asked, params))
    shutil.rmtree(checkpoints_dir.parent, ignore_errors=True)
    return _count(answers)


def _load_asked(workspace: Workspace) -> _Asked:
    queries = load_queries(workspace.tables_dir / "queries.parquet")
    asked = _Asked(*([query for query in queries if query.split == split] for split in ("val", "test")))
    if not asked.test:
        raise StageError("there is no query with split `test` to evaluate on; add some to the data")
    return asked


def _find_policies(params: Params, workspace: Workspace) -> dict[str, Path]:
    for folder, stage in ((workspace.sft_dir, "warmup"), (workspace.policy_dir, "train")):
        if not folder.is_dir():
            raise StageError(f"{folder} is missing; run {stage} first")
    return {"base": Path(params.policy.path), "sft": workspace.sft_dir, "rgrpo": workspace.policy_dir}


def _ask(name: str, folder: Path, asked: _Asked, params: Params, workspace: Workspace) -> list[Answer]:
    """Return a policy's answers: greedy ones, and in r-GRPO's case those to every other way of asking."""
    from pipeline.policy.vllm_engine import load_asked_policy

    policy = load_asked_policy(folder, params.policy, params.batches.policy)
    interview = _Interview(name, policy, workspace.data_dir)
    free = interview.ask("free", asked.test, params)
    answers = [*free, *interview.ask("free", asked.val, params)]
    if name != "rgrpo":
        return answers
    return [
        *answers,
        *interview.ask("blind", asked.test, params),
        *interview.draw(list_cropped(asked.test, free), params),
        *interview.ask("forced", asked.val, params),
        *interview.ask("forced", asked.test, params),
    ]


@dataclass(frozen=True, slots=True)
class _Interview:
    """One policy that is being asked."""

    name: str
    policy: DecidingPolicy
    data_dir: Path

    def ask(self, way: Way, queries: Sequence[Query], params: Params) -> list[Answer]:
        """Ask once about each query."""
        decide = partial(self.policy.decide, force_region=way == "forced")
        label, blind = self._name_lot(way, queries), way == "blind"
        replies = ask_in_batches(decide, queries, self.data_dir, params, label=label, blind=blind)
        return [self._record(way, query, None, reply) for query, reply in zip(queries, replies, strict=True)]

    def draw(self, queries: Sequence[Query], params: Params) -> list[Answer]:
        """Draw several regions for each query; each has a seed of its own, so that batches decide nothing."""
        draw = partial(self.policy.sample_regions, num_samples=params.answer.num_samples)
        seeds = [derive_seed(params.seed, query.query_id) for query in queries]
        label = self._name_lot("sampled", queries)
        drawn = ask_in_batches(draw, queries, self.data_dir, params, label=label, seeds=seeds)
        return [
            self._record("sampled", query, number, reply)
            for query, replies in zip(queries, drawn, strict=True)
            for number, reply in enumerate(replies)
        ]

    def _name_lot(self, way: Way, queries: Sequence[Query]) -> str:
        return ", ".join([f"answer: {self.name}", *{query.split for query in queries}, way])

    def _record(self, way: Way, query: Query, sample: int | None, reply: Reply) -> Answer:
        return Answer(
            policy=self.name,
            way=way,
            split=query.split,
            query_id=query.query_id,
            sample=sample,
            decision=reply.decision,
            completion=reply.completion,
            p_region=reply.p_region,
        )


def _name_run(params: Params, workspace: Workspace, asked: _Asked, base_digest: str) -> str:
    """Return a name that changes with all that answers depend on beside the policy: parameters, queries, code."""
    tree = params.model_dump(mode="json", include=_SECTIONS)
    content = [tree, base_digest, hash_queries(asked.list_all())]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    pictures = [workspace.data_dir / path for path in dict.fromkeys(query.image_path for query in asked.list_all())]
    code = sorted(file for package in _CODE for file in (_PACKAGE_DIR / package).rglob("*.py"))
    for file in (*code, *(picture for picture in pictures if picture.is_file())):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _describe(digests: Mapping[str, str], asked: _Asked, params: Params) -> AnswersMeta:
    return AnswersMeta(
        base_digest=digests["base"],
        sft_digest=digests["sft"],
        policy_digest=digests["rgrpo"],
        queries_sha256=hash_queries(asked.list_all()),
        num_samples=params.answer.num_samples,
    )


def _count(answers: Sequence[Answer]) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for answer in answers:
        groups.setdefault(f"{answer.policy}.{answer.way}", []).append(isinstance(answer.decision, Malformed))
    figures: dict[str, float] = {"num_answers": len(answers)}
    for name, malformed in groups.items():
        figures[f"{name}.num_answers"] = len(malformed)
        figures[f"{name}.malformed_rate"] = sum(malformed) / len(malformed)
    return figures
