"""r-GRPO: balanced groups, factorised advantages, what is watched, recovery from collapse, resume."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from trl import GRPOTrainer

from demo.recipes.tiny_llava import ASSISTANT
from pipeline.config import LoraParams, PolicyParams, RewardParams, TrainParams
from pipeline.core.advantage import FULL, MALFORMED, REGION
from pipeline.core.boxes import Frame
from pipeline.core.completion import FULL_ANSWER, REGION_OPENING, format_decision
from pipeline.policy.policy import Policy, load_policy
from pipeline.reranking.scorer import FrozenScorer
from pipeline.runs.tracking import null_run
from pipeline.stages import index as index_stage
from pipeline.stages import retrieve as retrieve_stage
from pipeline.training.grpo import train
from pipeline.training.grpo.completions import Completion, mask_openings
from pipeline.training.grpo.groups import GroupPlan
from pipeline.training.grpo.log_probs import SharedPromptTrainer
from pipeline.training.grpo.resume import ResumableTrainer
from pipeline.training.grpo.reward import PolicyReward, ranking_reward
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.grpo.trainer import RGRPOTrainer
from pipeline.training.seeding import seed_everything
from pipeline.types import Box, Crop, KeepFull, Malformed, Outcome, Rollout
from tests.conftest import TaughtLlava
from tests.scripted import encode, scripted
from tests.tiny_models import CountingEncoder, PlantedScorer, build_corpus, build_outcome, build_params

pytestmark = pytest.mark.slow
REWARD = RewardParams()
STOCK = {"num_region": 0, "num_full": 0, "factorised": False}


def _params(**changes: object) -> TrainParams:
    settings = {
        "max_steps": 2,
        "queries_per_step": 2,
        "group_size": 8,
        "num_region": 3,
        "num_full": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "beta": 0.0,
        "save_steps": 1000,
    }
    return TrainParams.model_validate(settings | changes)


def _load(taught: TaughtLlava, lora: LoraParams | None = None, max_new_tokens: int = 9) -> Policy:
    return load_policy(taught.folder, PolicyParams(max_new_tokens=max_new_tokens, device="cpu", lora=lora))


def _collapse(policy: Policy, onto_id: int, from_id: int, bias: float) -> None:
    """Raise one opening's logit over the other's by `bias`; the weights stay as they are and stay trainable."""
    words_VH = policy.model.get_output_embeddings().weight.detach()
    onto_H, from_H = words_VH[onto_id], words_VH[from_id]
    apart_H = onto_H - from_H * (onto_H @ from_H) / (from_H @ from_H)
    push_H = bias * apart_H / (apart_H @ onto_H)
    assistant_id = policy.processor.tokenizer.convert_tokens_to_ids(ASSISTANT)

    def push(_module: Any, _arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        opens_BT1 = (keywords["input_ids"] == assistant_id).unsqueeze(-1)
        output.last_hidden_state = output.last_hidden_state + opens_BT1 * push_H
        return output

    policy.model.base_model.register_forward_hook(push, with_kwargs=True)


def _plant(taught: TaughtLlava, *, baseline: int, crop: int | Callable[[Box], Outcome]) -> PlantedScorer:
    def score_box(_query_id: str, box: Box) -> Outcome:
        return build_outcome(crop) if isinstance(crop, int) else crop(box)

    return PlantedScorer(taught.questions, baseline=build_outcome(baseline), score_box=score_box)


class Training:
    """One short run and all that it let slip."""

    def __init__(
        self,
        policy: Policy,
        taught: TaughtLlava,
        scorer: PlantedScorer,
        params: TrainParams,
        folder: Path,
        *,
        die_at: int | None = None,
    ) -> None:
        self.policy = policy
        self.params = params
        self.logged: dict[int, dict[str, float]] = {}
        self.batches: list[dict[str, Any]] = []
        self.sampled: list[list[Completion]] = []
        score, read = RGRPOTrainer._generate_and_score_completions, PolicyReward.read_completions

        def record(trainer: RGRPOTrainer, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = score(trainer, inputs)
            watched = {
                "query_id": [row["query_id"] for row in inputs],
                "opening_mask": mask_openings(self.sampled[-1], output["completion_ids"]),
                "opening_code": torch.tensor([row.opening_code for row in self.sampled[-1]]),
            }
            self.batches.append(output | watched)
            return output

        def keep(reward: PolicyReward, *arguments: Any) -> list[Completion]:
            self.sampled.append(read(reward, *arguments))
            return self.sampled[-1]

        def log(figures: Any, step: int) -> None:
            if step == die_at:
                raise KeyboardInterrupt
            self.logged.setdefault(step, {}).update(figures)

        seed_everything(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RGRPOTrainer, "_generate_and_score_completions", record)
            patch.setattr(PolicyReward, "read_completions", keep)
            record_of_run = train_rgrpo(
                policy,
                taught.questions,
                scorer,  # type: ignore[arg-type]
                params,
                REWARD,
                seed=3,
                log=log,
                checkpoints_dir=folder,
            )
        self.rollouts = list(record_of_run.rollouts)
        self.curve = list(record_of_run.curve)

    def list_groups(self) -> list[list[Rollout]]:
        size = self.params.group_size
        return [self.rollouts[start : start + size] for start in range(0, len(self.rollouts), size)]


def _ask_p_regions(policy: Policy, taught: TaughtLlava) -> dict[str, float]:
    images = [taught.load_image(query_id) for query_id in taught.questions]
    answers = policy.decide(images, list(taught.questions.values()))
    return {query_id: answer.p_region for query_id, answer in zip(taught.questions, answers, strict=True)}


def _ask_p_region(policy: Policy, taught: TaughtLlava) -> float:
    return float(np.mean(list(_ask_p_regions(policy, taught).values())))


def _check_same_weights(a: Policy, b: Policy) -> None:
    wanted, got = a.model.state_dict(), b.model.state_dict()
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], got[name])] == []


def _margin_of(box: Box) -> Outcome:
    return build_outcome(2, margin=box.x0 - box.y0 + box.x1)


@pytest.fixture(scope="module")
def collapsed(spoken_llava: TaughtLlava, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Two steps of a policy that would only ever say FULL; crops differ in what they earn."""
    policy = _load(spoken_llava)
    _collapse(policy, policy.full_ids[0], policy.region_ids[0], 12.0)
    scorer = _plant(spoken_llava, baseline=2, crop=_margin_of)
    params = _params(beta=0.02, temperature=1.5)  # answers learned by heart hardly differ at 1
    return Training(policy, spoken_llava, scorer, params, tmp_path_factory.mktemp("collapsed"))


@pytest.fixture(scope="module")
def started(spoken_llava: TaughtLlava, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """Two steps of a policy that begins as its own reference."""
    scorer = _plant(spoken_llava, baseline=2, crop=_margin_of)
    params = _params(beta=0.02, temperature=1.5)  # answers learned by heart hardly differ at 1
    return Training(_load(spoken_llava), spoken_llava, scorer, params, tmp_path_factory.mktemp("started"))


@pytest.fixture(scope="module")
def stock(spoken_llava: TaughtLlava, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The same policy under TRL's own sampling and plain advantages."""
    policy = _load(spoken_llava)
    _collapse(policy, policy.full_ids[0], policy.region_ids[0], 12.0)
    scorer = _plant(spoken_llava, baseline=2, crop=_margin_of)
    return Training(policy, spoken_llava, scorer, _params(**STOCK), tmp_path_factory.mktemp("stock"))


@pytest.mark.parametrize(("position", "arm"), [(0, "region"), (2, "region"), (3, "full"), (5, "free"), (9, "region")])
def test_plan_repeats_for_every_group(position: int, arm: str) -> None:
    assert GroupPlan(8, 3, 2).get_arm(position) == arm


def test_every_group_holds_both_arms_even_after_collapse(collapsed: Training) -> None:
    groups = collapsed.list_groups()
    assert len(groups) == 4
    for group in groups:
        assert len({rollout.query_id for rollout in group}) == 1
        assert Counter(rollout.arm for rollout in group) == {"region": 3, "full": 2, "free": 3}
        opens_region = [rollout.completion.startswith(REGION_OPENING) for rollout in group]
        opens_full = [rollout.completion.startswith(FULL_ANSWER) for rollout in group]
        assert sum(opens_region) >= 3
        assert sum(opens_full) >= 2
        assert all(opens_region[:3])
        assert all(opens_full[3:5])
    assert {rollout.step for rollout in collapsed.rollouts} == {point.step for point in collapsed.curve} == {1, 2}


def test_stock_groups_do_not(stock: Training) -> None:
    assert all(rollout.arm == "free" for rollout in stock.rollouts)
    assert not any(rollout.completion.startswith(REGION_OPENING) for rollout in stock.rollouts)
    assert stock.logged[1]["zero_signal_groups"] >= 0.5


def test_collapsed_groups_carry_a_signal(collapsed: Training) -> None:
    for group in collapsed.list_groups():  # a crop and the full image happen to earn different rewards
        assert len({rollout.reward for rollout in group}) > 1
    assert all(figures["zero_signal_groups"] == 0.0 for figures in collapsed.logged.values())


def test_forced_tokens_belong_to_completion_and_loss(collapsed: Training) -> None:
    region_id, full_id = collapsed.policy.region_ids[0], collapsed.policy.full_ids[0]
    for batch in collapsed.batches:
        firsts = batch["completion_ids"][:, 0].view(-1, 8)
        assert (firsts[:, :3] == region_id).all()
        assert (firsts[:, 3:5] == full_id).all()
        assert (batch["completion_mask"][:, 0] == 1).all()
        assert "tool_mask" not in batch
        assert (batch["prompt_ids"] != region_id).all()
        assert (batch["prompt_ids"] != full_id).all()


def test_a_completion_is_not_cut_by_its_forced_opening(collapsed: Training) -> None:
    crops = [rollout for rollout in collapsed.rollouts if rollout.decision == "region"]
    assert crops
    assert all(rollout.box is not None for rollout in crops)


def test_factorised_advantages_differ_between_decision_and_box(collapsed: Training) -> None:
    num_different = 0
    for batch in collapsed.batches:
        advantages_BT, opening_BT = batch["advantages"], batch["opening_mask"]
        assert advantages_BT.shape == batch["completion_ids"].shape
        assert opening_BT[:, 0].all()
        assert not opening_BT[:, 1:].any()
        num_different += int((advantages_BT[:, 0] != advantages_BT[:, 1]).sum())
    assert num_different > 0


def test_plain_advantages_are_alike_for_all_tokens(stock: Training) -> None:
    for batch in stock.batches:
        advantages_BT = batch["advantages"]
        assert advantages_BT.shape == batch["completion_ids"].shape
        assert (advantages_BT == advantages_BT[:, :1]).all()


def test_box_advantages_cancel_within_an_arm(collapsed: Training) -> None:
    for batch in collapsed.batches:
        box_BG = batch["advantages"][:, -1].view(-1, 8)
        codes_BG = batch["opening_code"].view(-1, 8)
        for code in (REGION, FULL):
            sums_B = (box_BG * (codes_BG == code)).sum(1)
            torch.testing.assert_close(sums_B, torch.zeros_like(sums_B), atol=1e-5, rtol=0)
    assert any((batch["advantages"][:, -1] != 0.0).any() for batch in collapsed.batches)


def test_advantages_follow_the_rows_rewards(started: Training) -> None:
    rewards_BG = torch.tensor([rollout.reward for rollout in started.rollouts[:16]]).view(2, 8)
    batch = started.batches[0]
    codes_BG = batch["opening_code"].view(2, 8)
    boxes_BG = batch["advantages"][:, -1].view(2, 8)
    openings_BG = batch["advantages"][:, 0].view(2, 8)
    for rewards_G, codes_G, boxes_G, openings_G in zip(rewards_BG, codes_BG, boxes_BG, openings_BG, strict=True):
        earned = rewards_G[codes_G == REGION]
        spread = earned.std(correction=0) + 0.05
        torch.testing.assert_close(boxes_G[codes_G == REGION], (earned - earned.mean()) / spread, atol=1e-5, rtol=0)
        # At the first step policy and reference are one, so the weights are the target alone, in each forced row.
        gap = earned.mean() - rewards_G[codes_G == FULL].mean()
        target = torch.sigmoid(gap / started.params.decision_temperature)
        # Times the mean length of an answer, by which TRL's mean over tokens divides.
        share = 8 * batch["num_items_in_batch"].cpu() / 16
        wanted = [*[share * target / 3] * 3, *[share * (1 - target) / 2] * 2, *[torch.tensor(0.0)] * 3]
        torch.testing.assert_close(openings_G, torch.stack(wanted), atol=1e-3, rtol=0)


def test_probabilities_and_kl_are_logged(collapsed: Training) -> None:
    assert set(collapsed.logged) == {1, 2}
    for figures in collapsed.logged.values():
        assert 0.0 <= figures["p_region"] <= 1.0
        assert 0.0 <= figures["p_full"] <= 1.0
        assert figures["p_full"] > figures["p_region"]
        assert figures["decision_mass"] == pytest.approx(figures["p_region"] + figures["p_full"])
        assert figures["decision_mass"] <= 1.0 + 1e-5
        assert 0.0 < figures["decision_target"] < 1.0
        assert figures["free_region_rate"] == 0.0
        assert {"reward", "reward_margin", "malformed_rate", "entropy", "grad_norm"} <= figures.keys()


def test_both_kls_begin_at_0_and_rise_with_the_policy(started: Training) -> None:
    for name in ("decision_kl", "kl"):
        assert started.logged[1][name] == pytest.approx(0.0, abs=1e-7)
        assert started.logged[2][name] > 1e-6


def test_p_openings_and_their_kl_are_those_of_a_plain_forward_pass(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy, reference = _load(spoken_llava), _load(spoken_llava)
    _collapse(policy, policy.full_ids[0], policy.region_ids[0], 3.0)
    scorer, params = _plant(spoken_llava, baseline=2, crop=1), _params(max_steps=1, beta=0.04, learning_rate=1e-15)
    training = Training(policy, spoken_llava, scorer, params, tmp_path)
    (batch,) = training.batches
    opens_B3 = []
    for model in (policy.model.eval(), reference.model.eval()):
        with torch.no_grad():
            logits_BV = model(
                input_ids=batch["prompt_ids"][::8],
                attention_mask=batch["prompt_mask"][::8],
                pixel_values=batch["pixel_values"][::8],
            ).logits[:, -1]
        p_BA = logits_BV.double().softmax(1)[:, [policy.region_ids[0], policy.full_ids[0]]].numpy()
        opens_B3.append(np.concatenate([p_BA, 1.0 - p_BA.sum(axis=1, keepdims=True)], axis=1))
    logged = training.logged[1]
    for name, place in (("p_region", REGION), ("p_full", FULL)):
        assert logged[name] == pytest.approx(opens_B3[0][:, place].mean(), abs=1e-5)
    assert logged["decision_kl"] == pytest.approx(rel_entr(*opens_B3).sum(axis=1).mean(), abs=1e-5)
    assert logged["decision_kl"] > 1e-3


def test_codes_are_what_the_completions_say(collapsed: Training, stock: Training, started: Training) -> None:
    for training in (collapsed, stock, started):
        tokenizer = training.policy.processor.tokenizer
        for batch in training.batches:
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["completion_ids"]]
            wanted = [
                REGION if text.startswith(REGION_OPENING) else FULL if text.startswith(FULL_ANSWER) else MALFORMED
                for text in texts
            ]
            assert batch["opening_code"].tolist() == wanted
    assert {REGION, FULL} <= set(collapsed.batches[0]["opening_code"].tolist())


@pytest.mark.parametrize("changes", [{}, STOCK], ids=["balanced", "stock"])
def test_kl_is_that_of_a_plain_forward_pass(
    spoken_llava: TaughtLlava, tmp_path: Path, changes: dict[str, object]
) -> None:
    policy, reference = _load(spoken_llava), _load(spoken_llava)
    seed_everything(4)
    with torch.no_grad():  # the reference is read from the folder, where nobody moved it
        for weight in policy.model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    scorer = _plant(spoken_llava, baseline=2, crop=1)
    params = _params(max_steps=1, beta=0.04, learning_rate=1e-15, temperature=1.5, **changes)
    training = Training(policy, spoken_llava, scorer, params, tmp_path)
    (batch,) = training.batches
    ids_BN = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask_BN = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    num_tokens = batch["completion_ids"].shape[1]
    logps = []
    for model in (policy.model.eval(), reference.model.eval()):
        with torch.no_grad():
            out = model(input_ids=ids_BN, attention_mask=mask_BN, pixel_values=batch["pixel_values"])
        logps_BTV = (out.logits[:, -num_tokens - 1 : -1] / params.temperature).log_softmax(-1)
        logps.append(logps_BTV.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1))
    gap_BT = logps[1] - logps[0]
    kl_BT = gap_BT.exp() - gap_BT - 1.0  # Schulman's third estimator, as TRL has it
    if not changes:  # the decision has its own
        kl_BT = kl_BT.masked_fill(batch["opening_mask"], 0.0)
    spoken_BT = batch["completion_mask"]
    wanted = float((kl_BT * spoken_BT).sum() / spoken_BT.sum())
    assert wanted > 1e-3
    assert training.logged[1]["kl"] == pytest.approx(wanted, rel=1e-3)


def test_rollouts_keep_what_each_completion_earned(collapsed: Training) -> None:
    for rollout in collapsed.rollouts:
        if rollout.decision == "full":
            assert rollout.reward == REWARD.full_otherwise
        elif rollout.decision == "malformed":
            assert rollout.reward == REWARD.malformed
        else:
            assert rollout.box is not None
            gain = REWARD.weight_margin * (_margin_of(rollout.box).margin or 0.0)
            assert rollout.reward == pytest.approx(REWARD.scale * max(REWARD.floor, gain), abs=1e-5)


# -- where a row ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says_end", [True, False], ids=["end token", "goes on"])
def test_loss_and_lengths_end_with_the_action(spoken_llava: TaughtLlava, tmp_path: Path, says_end: bool) -> None:
    policy, plan = _load(spoken_llava), GroupPlan(8, 3, 2)
    tokenizer = policy.processor.tokenizer
    end = tokenizer.eos_token if says_end else ""
    crop = format_decision(Crop(Box(0.0, 0.0, 0.5, 0.5)), policy.get_frame(40, 30))
    wanted = {"region": crop, "full": FULL_ANSWER, "free": FULL_ANSWER}

    def say(row: int) -> str:
        return "no sense " * 9 if row == 7 else wanted[plan.get_arm(row)] + end + " and so on"

    scorer = _plant(spoken_llava, baseline=2, crop=1)
    with scripted(policy, say):
        training = Training(policy, spoken_llava, scorer, _params(max_steps=1), tmp_path)
    (batch,) = training.batches
    for row, (ids, mask) in enumerate(zip(batch["completion_ids"], batch["completion_mask"], strict=True)):
        kept = ids[mask.bool()]
        assert (mask.diff() <= 0).all()
        assert (ids[~mask.bool()] == tokenizer.pad_token_id).all()
        if row == 7:  # the only one that the length cuts
            assert len(kept) == policy.params.max_new_tokens
        else:
            assert tokenizer.decode(kept) == wanted[plan.get_arm(row)] + end
    assert training.logged[1]["clipped_rate"] == pytest.approx(1 / 16)
    assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    malformed = [rollout.decision == "malformed" for rollout in training.rollouts]
    assert malformed == [row == 7 for row in range(16)]


def test_a_forced_opening_counts_towards_the_length(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy = _load(spoken_llava)
    with scripted(policy, lambda row: REGION_OPENING + "no sense " * 9 if row % 8 < 3 else FULL_ANSWER):
        training = Training(
            policy, spoken_llava, _plant(spoken_llava, baseline=2, crop=1), _params(max_steps=1), tmp_path
        )
    lengths = training.batches[0]["completion_mask"].sum(1).view(-1, 8)
    assert (lengths[:, :3] == policy.params.max_new_tokens).all()


def test_an_opening_in_other_tokens_is_its_arm(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy = _load(spoken_llava, max_new_tokens=30)
    crop = format_decision(Crop(Box(0.0, 0.0, 0.5, 0.5)), policy.get_frame(40, 30))
    rest = encode(policy, crop)[len(policy.region_ids) :]
    letters = [token for letter in REGION_OPENING for token in encode(policy, letter)]
    assert len(letters) == len(REGION_OPENING)
    p_of = _ask_p_regions(policy, spoken_llava)
    with scripted(policy, lambda row: crop if row % 8 < 3 else [*letters, *rest] if row % 8 == 7 else FULL_ANSWER):
        training = Training(
            policy, spoken_llava, _plant(spoken_llava, baseline=2, crop=1), _params(max_steps=1), tmp_path
        )
    (batch,) = training.batches
    # The loss knows the probability of the canonical tokens; others open what it calls neither.
    wanted = np.mean([p_of[name] for name in batch["query_id"]])
    assert training.logged[1]["p_region"] == pytest.approx(wanted, abs=1e-5)
    assert (batch["advantages"].view(2, 8, -1)[:, 7, : len(letters)] == 0.0).all()
    assert (batch["advantages"].view(2, 8, -1)[:, :3, 0] > 0.0).all()
    assert (batch["opening_code"].view(-1, 8)[:, 7] == REGION).all()
    assert (batch["opening_mask"].sum(1).view(-1, 8)[:, 7] == len(letters)).all()
    assert {rollout.decision for rollout in training.rollouts[7::8]} == {"region"}


def test_p_opening_is_read_without_dropout(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy = _load(spoken_llava, LoraParams(rank=4, alpha=64, dropout=0.9))
    policy.prepare_training()
    seed_everything(2)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:  # a fresh adapter changes nothing, with dropout or without
            torch.nn.init.normal_(weight, std=0.02)
    p_of = _ask_p_regions(policy, spoken_llava)
    scorer, params = _plant(spoken_llava, baseline=2, crop=1), _params(max_steps=1, beta=0.04)
    training = Training(policy, spoken_llava, scorer, params, tmp_path)
    (batch,) = training.batches
    wanted = np.mean([p_of[query_id] for query_id in batch["query_id"]])
    assert training.logged[1]["p_region"] == pytest.approx(wanted, abs=1e-4)
    # So is the reference's, which still says the same; and TRL's estimate leaves the openings out though the pass of
    # the loss has its dropout.
    assert training.logged[1]["decision_kl"] == pytest.approx(0.0, abs=1e-6)
    assert training.logged[1]["kl"] > 0.0


# -- the loss that TRL makes of it ------------------------------------------------------------------------------


class Step:
    """One batch, its loss and gradients, of rows that say what they are told."""

    def __init__(self, taught: TaughtLlava, folder: Path, changes: dict[str, Any], says: list[str]) -> None:
        policy = _load(taught)
        _collapse(policy, policy.full_ids[0], policy.region_ids[0], 6.0)  # the reference is the policy before
        compute_loss = RGRPOTrainer._compute_loss

        def record(trainer: RGRPOTrainer, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            if "keep" in changes:  # which tokens the loss is made of
                mask = inputs["opening_mask"] if changes["keep"] == "openings" else ~inputs["opening_mask"]
                inputs["tool_mask"] = mask.long()
            if changes.get("no_advantages"):
                inputs["advantages"] = torch.zeros_like(inputs["advantages"])
            loss = compute_loss(trainer, model, inputs)
            names, weights = zip(*model.named_parameters(), strict=True)
            grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            num_rows = len(inputs["completion_ids"])  # the decision's loss is a mean over groups, not over tokens
            self.gradient = {name: grad * num_rows for name, grad in zip(names, grads, strict=True) if grad is not None}
            self.loss = loss.item()
            return loss

        params = _params(max_steps=1, **{k: v for k, v in changes.items() if k not in ("keep", "no_advantages")})
        scorer = _plant(taught, baseline=2, crop=1)
        with pytest.MonkeyPatch.context() as patch, scripted(policy, lambda row: says[row % params.group_size]):
            patch.setattr(RGRPOTrainer, "_compute_loss", record)
            self.training = Training(policy, taught, scorer, params, folder)


_CROP = format_decision(Crop(Box(2 / 28, 5 / 28, 11 / 28, 20 / 28)), Frame(28, 28))


def test_trls_kl_has_neither_value_nor_gradient_on_openings(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    says = [_CROP] * 3 + [FULL_ANSWER] * 5
    openings = Step(spoken_llava, tmp_path, {"beta": 1.0, "no_advantages": True, "keep": "openings"}, says)
    assert openings.loss == 0.0
    assert all((grad == 0.0).all() for grad in openings.gradient.values())
    assert openings.training.logged[1]["kl"] == 0.0
    assert openings.training.logged[1]["decision_kl"] > 1e-3  # though policy and reference differ


def test_trls_kl_is_left_to_stock_groups(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    changes = STOCK | {"beta": 1.0, "no_advantages": True}
    assert Step(spoken_llava, tmp_path, changes, [_CROP] * 8).loss > 1e-3


def test_the_decisions_gradient_depends_neither_on_the_number_of_forced_rows_nor_on_their_length(
    spoken_llava: TaughtLlava, tmp_path: Path
) -> None:
    found = []
    for num_region, num_full in ((6, 2), (1, 5), (2, 2)):
        changes = {"beta": 0.5, "keep": "openings", "num_region": num_region, "num_full": num_full}
        free = [FULL_ANSWER] * (8 - num_region - num_full)
        says = [_CROP] * num_region + [FULL_ANSWER] * num_full + free
        found.append(Step(spoken_llava, tmp_path / f"{num_region}", changes, says).gradient)
    first, *others = found
    assert max(float(grad.abs().max()) for grad in first.values()) > 1e-3
    for other in others:
        for name, grad in first.items():
            torch.testing.assert_close(other[name], grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_.*able:FutureWarning")  # trl 1.16 asks by the old names
def test_activations_computed_again_give_the_same_step(
    spoken_llava: TaughtLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = [_CROP] * 3 + [FULL_ANSWER] * 5
    kept = Step(spoken_llava, tmp_path / "kept", {"beta": 0.5}, says)
    build = train.build_config

    def checkpoint(*arguments: Any) -> Any:
        config = build(*arguments)
        config.activation_checkpointing = config.gradient_checkpointing = True
        return config

    monkeypatch.setattr(train, "build_config", checkpoint)
    again = Step(spoken_llava, tmp_path / "again", {"beta": 0.5}, says)
    assert any(getattr(module, "gradient_checkpointing", False) for module in again.training.policy.model.modules())
    assert again.training.logged[1]["p_region"] == kept.training.logged[1]["p_region"]
    assert again.training.logged[1]["decision_kl"] == kept.training.logged[1]["decision_kl"]
    assert again.loss == pytest.approx(kept.loss, abs=1e-5)
    for name, grad in kept.gradient.items():
        torch.testing.assert_close(again.gradient[name], grad, atol=1e-4, rtol=1e-3, msg=name)


# -- TRL --------------------------------------------------------------------------------------------------------


_OVERRIDDEN = {
    "_generate_single_turn": "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False)",
    "_generate": "(self, prompts: list)",
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_generate_and_score_completions": "(self, inputs: list[dict[str, torch.Tensor | typing.Any]])"
    " -> dict[str, torch.Tensor | typing.Any]",
    "_compute_loss": "(self, model, inputs)",
    "_get_per_token_logps_and_entropies": "(self, model, input_ids, attention_mask, logits_to_keep, batch_size=None,"
    " compute_entropy=False, compute_aux_loss=False, pixel_values=None, image_grid_thw=None, num_images=None,"
    " pixel_attention_mask=None, spatial_shapes=None, num_tiles=None, image_sizes=None, token_type_ids=None,"
    " mm_token_type_ids=None, image_position_ids=None) -> tuple[torch.Tensor, torch.Tensor | None,"
    " torch.Tensor | None]",
    "_get_train_sampler": "(self, dataset: datasets.arrow_dataset.Dataset | None = None)"
    " -> torch.utils.data.sampler.Sampler",
    "_save_checkpoint": "(self, model, trial)",
    "_load_from_checkpoint": "(self, resume_from_checkpoint: str, model: torch.nn.modules.module.Module | None = None)"
    " -> None",
}
"""Methods of TRL's trainer that ours replaces, with the signatures that it was written for."""


def test_overridden_methods_of_trl_are_those_that_ours_was_written_for() -> None:
    written = {name for room in (RGRPOTrainer, SharedPromptTrainer, ResumableTrainer) for name in vars(room)}
    ours = {name for name in written if name in dir(GRPOTrainer) and not name.startswith("__")}
    ours -= {"_tag_names", "_name"}
    assert ours == _OVERRIDDEN.keys()
    found = {name: str(inspect.signature(getattr(GRPOTrainer, name))) for name in ours}
    assert found == _OVERRIDDEN


# -- learning ---------------------------------------------------------------------------------------------------


def test_reward_for_full_raises_p_full(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy = _load(spoken_llava)
    _collapse(policy, policy.region_ids[0], policy.full_ids[0], 8.0)
    before = _ask_p_region(policy, spoken_llava)
    scorer = _plant(spoken_llava, baseline=1, crop=9)
    training = Training(policy, spoken_llava, scorer, _params(max_steps=12, learning_rate=3e-3), tmp_path)
    assert training.logged[12]["p_full"] > training.logged[1]["p_full"] + 0.3
    assert _ask_p_region(policy, spoken_llava) < before - 0.3


def test_balanced_groups_recover_from_collapse_and_stock_groups_do_not(
    spoken_llava: TaughtLlava, tmp_path: Path
) -> None:
    found = {}
    for name, changes in (("balanced", {}), ("stock", STOCK)):
        policy = _load(spoken_llava)
        _collapse(policy, policy.full_ids[0], policy.region_ids[0], 10.0)
        assert _ask_p_region(policy, spoken_llava) < 0.01
        scorer = _plant(spoken_llava, baseline=10, crop=1)
        params = _params(max_steps=45, **changes)
        Training(policy, spoken_llava, scorer, params, tmp_path / name)
        found[name] = _ask_p_region(policy, spoken_llava)
    assert found["balanced"] > 0.15
    assert found["stock"] < 0.02


# -- resume -----------------------------------------------------------------------------------------------------


_LORA = LoraParams(rank=2, alpha=4, dropout=0.1)


@pytest.mark.parametrize("lora", [None, _LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("save_steps", "updates_per_generation"), [(3, 1), (4, 2)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    spoken_llava: TaughtLlava, tmp_path: Path, lora: LoraParams | None, save_steps: int, updates_per_generation: int
) -> None:
    scorer = _plant(spoken_llava, baseline=2, crop=_margin_of)
    # An epoch is two generations long; the run is killed in its second one or later.
    params = _params(
        max_steps=save_steps + 2,
        save_steps=save_steps,
        updates_per_generation=updates_per_generation,
        beta=0.02,
        queries_per_step=4,
        group_size=4,
        num_region=1,
        num_full=1,
    )
    whole = Training(_load(spoken_llava, lora), spoken_llava, scorer, params, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cut = _load(spoken_llava, lora)
        Training(cut, spoken_llava, scorer, params, tmp_path / "cut", die_at=save_steps + 1)
    assert (tmp_path / "cut" / f"checkpoint-{save_steps}").is_dir()
    resumed = Training(_load(spoken_llava, lora), spoken_llava, scorer, params, tmp_path / "cut")
    assert whole.rollouts == resumed.rollouts
    assert whole.curve == resumed.curve
    assert not any("seconds" in point.metric for point in whole.curve)  # DVC tracks it
    assert {p.step for p in resumed.curve} == set(range(1, params.max_steps + 1))
    _check_same_weights(whole.policy, resumed.policy)
    start, got = _load(spoken_llava).model.state_dict(), resumed.policy.model.state_dict()
    if lora is None:
        assert any(not torch.equal(start[name], got[name]) for name in start)
    else:  # an adapter starts as no change: its second factor is 0
        assert any(got[name].any() for name in got if "lora_B.default" in name)


def test_a_checkpoint_cut_in_half_gives_way_to_the_one_before(
    spoken_llava: TaughtLlava, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = _plant(spoken_llava, baseline=2, crop=_margin_of)
    params = _params(max_steps=4, save_steps=1, queries_per_step=4, group_size=4, num_region=1, num_full=1)
    whole = Training(_load(spoken_llava), spoken_llava, scorer, params, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Training(_load(spoken_llava), spoken_llava, scorer, params, tmp_path / "cut", die_at=4)
    weights = tmp_path / "cut" / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    resumed = Training(_load(spoken_llava), spoken_llava, scorer, params, tmp_path / "cut")
    assert "checkpoint-3 was cut off" in caplog.text
    assert min(resumed.logged) == 1  # what the first two steps logged is told again
    assert len(resumed.batches) == 2
    assert whole.rollouts == resumed.rollouts
    _check_same_weights(whole.policy, resumed.policy)


# -- the reward -------------------------------------------------------------------------------------------------


def test_each_distinct_crop_is_encoded_once(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    workspace = build_corpus(tmp_path)
    encoder = CountingEncoder()
    with pytest.MonkeyPatch.context() as patch:
        for stage in (index_stage, retrieve_stage):
            patch.setattr(stage, "load_encoder", lambda *_: encoder)
            stage.run(build_params(Path("planted")), workspace, null_run())
    scorer = FrozenScorer.load(build_params(Path("planted")), workspace, encoder=encoder)
    reward = PolicyReward(scorer, _load(spoken_llava), REWARD)
    query_id, other_id = [pool.query_id for pool in scorer.pools.values() if pool.has_positive][:2]
    box, other_box = Box(0.1, 0.1, 0.6, 0.7), Box(0.3, 0.2, 0.9, 0.9)
    asked = [
        (query_id, Crop(box)),
        (query_id, KeepFull()),
        (query_id, Crop(box)),
        (other_id, Malformed("x")),
        (other_id, Crop(box)),
        (query_id, Crop(other_box)),
    ]
    before = encoder.num_images
    rewards = reward.score(*zip(*asked, strict=True))
    assert encoder.num_images - before == 3
    assert rewards[0] == rewards[2]
    assert rewards[3].total == REWARD.malformed
    reward.score(*zip(*asked, strict=True))
    assert encoder.num_images - before == 3


@pytest.mark.parametrize(
    ("text", "earned"),
    [
        (FULL_ANSWER, 1.0),
        (f"{FULL_ANSWER} or so", 1.0),
        (f"Not {FULL_ANSWER}", -2.5),
        (f"{REGION_OPENING}oops", -2.5),
        ("What?", -2.5),
        ("", -2.5),
    ],
)
def test_malformed_completions_get_the_penalty(spoken_llava: TaughtLlava, text: str, earned: float) -> None:
    scorer = _plant(spoken_llava, baseline=1, crop=1)
    policy = _load(spoken_llava)
    reward = PolicyReward(scorer, policy, RewardParams(malformed=-2.5))  # type: ignore[arg-type]
    ids = policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    logged: dict[str, float] = {}
    end_id = policy.processor.tokenizer.eos_token_id
    sampled = reward.read_completions(["q0"], [[*ids, end_id]])
    assert ranking_reward(sampled, logged.__setitem__, trainer_state=None) == [earned]
    assert logged == {"reward/mrr": 0.0, "reward/ndcg": 0.0, "reward/rank": 0.0, "reward/margin": 0.0}


def test_an_opening_without_sense_belongs_to_no_arm(spoken_llava: TaughtLlava, tmp_path: Path) -> None:
    policy = _load(spoken_llava)
    says = [REGION_OPENING + "no sense"] * 3 + [FULL_ANSWER] * 2 + ["no sense", FULL_ANSWER, "Not " + FULL_ANSWER]
    with scripted(policy, lambda row: says[row % 8]):
        training = Training(
            policy, spoken_llava, _plant(spoken_llava, baseline=2, crop=1), _params(max_steps=1), tmp_path
        )
    (batch,) = training.batches
    wanted = [REGION] * 3 + [FULL] * 2 + [MALFORMED, FULL, MALFORMED]
    assert batch["opening_code"].tolist() == wanted * 2
    assert training.logged[1]["malformed_rate"] == pytest.approx(2 / 3)
