"""The stage answer: what is asked of whom, that a batch decides nothing, and that a kill costs no policy twice."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Params
from pipeline.errors import StageError
from pipeline.evaluation.answers.asking import GREY
from pipeline.evaluation.answers.meta import hash_queries, load_meta
from pipeline.evaluation.answers.reading import read_answers
from pipeline.files.store import load_answers, save_queries
from pipeline.models.model_folder import compute_model_digest
from pipeline.runs.tracking import null_run
from pipeline.stages import answer
from pipeline.types import Crop, Malformed
from pipeline.workspace import Workspace
from tests.fakes.evaluation_fakes import PARAMS, FakePolicy, FakeWorld, build_fake_world


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWorld]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = build_fake_world(tmp_path_factory.mktemp("asked"), monkeypatch)
        answer.run(PARAMS, world.workspace, null_run())
        yield world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorld:
    return build_fake_world(tmp_path, monkeypatch, num_queries=8, num_val=4)


def _load(workspace: Workspace) -> list[Any]:
    return load_answers(workspace.answers_dir / "answers.parquet")


def test_every_policy_answers_every_query_and_ours_in_every_way(asked: FakeWorld) -> None:
    num_test, num_val = len(asked.queries), len(asked.val_queries)
    answers = _load(asked.workspace)
    greedy = {(a.policy, a.way, a.split, a.query_id) for a in answers if a.way != "sampled"}
    counts = Counter(key[:3] for key in greedy)
    assert counts == {
        **{(name, "free", "test"): num_test for name in ("base", "sft", "rgrpo")},
        **{(name, "free", "val"): num_val for name in ("base", "sft", "rgrpo")},
        ("rgrpo", "blind", "test"): num_test,
        ("rgrpo", "forced", "test"): num_test,
        ("rgrpo", "forced", "val"): num_val,
    }
    assert len(greedy) == sum(a.way != "sampled" for a in answers)


def test_regions_are_drawn_where_the_greedy_answer_crops(asked: FakeWorld) -> None:
    answers = _load(asked.workspace)
    free = [a for a in answers if (a.policy, a.way, a.split) == ("rgrpo", "free", "test")]
    sampled = [a for a in answers if a.way == "sampled"]
    cropped = [a.query_id for a in free if isinstance(a.decision, Crop)]
    assert 0 < len(cropped) < len(free)
    assert [(a.query_id, a.sample) for a in sampled] == [
        (query_id, number) for query_id in cropped for number in range(PARAMS.answer.num_samples)
    ]


def test_blind_policy_sees_grey_pictures_of_the_same_size(asked: FakeWorld) -> None:
    num_test = len(asked.queries)
    seen = asked.policies["policy"].seen
    assert len(seen) == 2 * num_test + len(asked.val_queries)
    blind, seeing = seen[-num_test:], seen[:-num_test]
    assert all(image.size == (96, 64) for image in seen)
    assert all(image.getcolors() == [(96 * 64, GREY)] for image in blind)
    assert all(len(image.getcolors(9999)) > 1 for image in seeing)


def test_meta_names_the_policies_and_the_queries(asked: FakeWorld) -> None:
    meta = load_meta(asked.workspace.answers_dir)
    assert meta.policy_digest == compute_model_digest(asked.workspace.policy_dir)
    assert meta.sft_digest == compute_model_digest(asked.workspace.sft_dir)
    assert meta.base_digest == compute_model_digest(Path(PARAMS.policy.path))
    assert meta.queries_sha256 == hash_queries([*asked.val_queries, *asked.queries])
    assert meta.queries_sha256 != hash_queries([*asked.queries, *asked.val_queries])


def test_answers_are_read_back_aligned_with_the_queries(asked: FakeWorld) -> None:
    found = read_answers(asked.workspace, asked.val_queries, asked.queries)
    policy = FakePolicy("policy")
    for queries, choices, forced in (
        (asked.val_queries, found.val, found.probed.forced_val),
        (asked.queries, found.test, found.probed.forced_test),
    ):
        questions = [query.question for query in queries]
        replies = policy.decide([], questions)
        assert choices["rgrpo"] == [(reply.decision, reply.completion) for reply in replies]
        wanted = policy.decide([], questions, force_region=True)
        assert [(a.decision, a.p_region) for a in forced] == [(reply.decision, reply.p_region) for reply in wanted]
    assert set(found.test) - set(found.val) == {"rgrpo_blind"}
    assert {len(drawn) for drawn in found.probed.samples.values()} == {PARAMS.answer.num_samples}


def test_figures_count_answers_and_malformed_ones(world: FakeWorld) -> None:
    figures = answer.run(PARAMS, world.workspace, null_run())
    answers = _load(world.workspace)
    assert figures["num_answers"] == len(answers)
    ours = [a for a in answers if (a.policy, a.way) == ("rgrpo", "free")]
    assert figures["rgrpo.free.num_answers"] == len(ours) == 12
    malformed = sum(isinstance(a.decision, Malformed) for a in ours)
    assert figures["rgrpo.free.malformed_rate"] == malformed / 12 > 0.0


def test_batches_decide_nothing(world: FakeWorld) -> None:
    answer.run(PARAMS, world.workspace, null_run())
    whole = _load(world.workspace)
    small = PARAMS.model_copy(update={"batches": PARAMS.batches.model_copy(update={"policy": 3})})
    answer.run(small, world.workspace, null_run())
    assert _load(world.workspace) == whole


# ---------------------------------------------------------------------------- after a kill


def _cut_off(world: FakeWorld, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let r-GRPO's draws, the last but one thing that is asked, end the process."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(FakePolicy, "sample_regions", lambda *_args, **_options: (_ for _ in ()).throw(SystemExit(137)))
        answer.run(params, world.workspace, null_run())


def test_a_second_run_asks_no_policy_that_has_finished(world: FakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    _cut_off(world, PARAMS, monkeypatch)
    assert not world.workspace.answers_dir.exists()
    heard = {name: len(policy.seen) for name, policy in world.policies.items()}
    resumed = answer.run(PARAMS, world.workspace, null_run())
    assert {name: len(world.policies[name].seen) for name in ("base", "sft")} == {"base": heard["base"], "sft": 12}
    assert len(world.policies["policy"].seen) == 2 * heard["policy"]
    assert not (world.workspace.checkpoints_dir / "answer").exists()
    found = _load(world.workspace)
    assert answer.run(PARAMS, world.workspace, null_run()) == resumed
    assert _load(world.workspace) == found


def _change_question(world: FakeWorld) -> Params:
    first = replace(world.queries[0], question="crop 0 0 0.5 0.5")
    save_queries(world.workspace.tables_dir / "queries.parquet", [first, *world.queries[1:], *world.val_queries])
    return PARAMS


def _change_picture(world: FakeWorld) -> Params:
    paths = [world.workspace.data_dir / world.queries[number].image_path for number in (0, 1)]
    shutil.copy(paths[1], paths[0])
    return PARAMS


def _change_seed(_: FakeWorld) -> Params:
    return PARAMS.model_copy(update={"seed": 99})


@pytest.mark.parametrize("change", [_change_question, _change_picture, _change_seed])
def test_what_was_kept_under_other_conditions_is_asked_again(
    world: FakeWorld, change: Callable[[FakeWorld], Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(world, PARAMS, monkeypatch)
    heard = len(world.policies["base"].seen)
    answer.run(change(world), world.workspace, null_run())
    assert len(world.policies["base"].seen) == 2 * heard


def test_another_policy_is_asked_again_and_the_others_are_not(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(world, PARAMS, monkeypatch)
    heard = {name: len(world.policies[name].seen) for name in ("base", "sft")}
    (world.workspace.sft_dir / "config.json").write_text("[]")
    answer.run(PARAMS, world.workspace, null_run())
    assert {name: len(world.policies[name].seen) for name in ("base", "sft")} == heard | {"sft": 2 * heard["sft"]}


# ---------------------------------------------------------------------------- what stops it


@pytest.mark.parametrize(("name", "stage"), [("sft_dir", "warmup"), ("policy_dir", "train")])
def test_missing_policy_names_the_stage_that_trains_it(world: FakeWorld, name: str, stage: str) -> None:
    shutil.rmtree(getattr(world.workspace, name))
    with pytest.raises(StageError, match=f"run {stage} first"):
        answer.run(PARAMS, world.workspace, null_run())


def test_without_test_queries_nobody_is_asked(world: FakeWorld) -> None:
    save_queries(world.workspace.tables_dir / "queries.parquet", world.val_queries)
    with pytest.raises(StageError, match="no query with split `test`"):
        answer.run(PARAMS, world.workspace, null_run())
    assert world.policies == {}
