"""r-GRPO: GRPO with decision-balanced groups (paper section 3), on TRL's GRPOTrainer.

Departures from TRL's trainer (docs/method.md gives their numbers and measurements):
- Some rows of every group are made to open with REGION, some with FULL; the rest are left free, so that a policy
  that has collapsed to one decision still sees what the other one earns, and malformed openings are still punished.
- Decision tokens and box tokens carry advantages of their own, (B, T) instead of (B,).
- The decision has an exact loss (`core/decision.py`), for which one short forward pass a query reads p(REGION) and
  p(FULL); TRL's estimate of the KL is left to the box tokens.
- A prompt goes through the model once, not once for each row of its group (`shared_prompts.py`), and so does a picture
  through the vision tower (`shared_pictures.py`).
- A row ends with its action (`action_end.py`); the trainer would go on until an end token.
- A checkpoint of a full fine-tune restores its weights (TRL's only warns that it does not), one that was cut off does
  not count, and a resumed run goes on with the order of its own epoch (TRL's starts again with the first one's).

Shapes: B rows of this process, N rows of all processes, G rows of a group, T tokens of a completion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from pipeline.config import RewardParams, TrainParams
from pipeline.core.advantage import (
    FULL,
    MALFORMED,
    REGION,
    compute_arm_values,
    compute_box_advantages,
    compute_group_advantages,
    count_zero_signal,
    spread_over_rows,
)
from pipeline.core.completion import cut_after_action
from pipeline.core.decision import DecisionLoss, compute_decision_loss
from pipeline.core.reward import Reward, compute_reward
from pipeline.files.store import load_rollouts, save_rollouts
from pipeline.policy.decoding.action_end import drop_beyond_action, is_complete
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.decoding.openings import read_opening
from pipeline.policy.decoding.shared_pictures import share_pictures
from pipeline.policy.decoding.shared_prompts import can_share_prompts, compute_completion_logps, select_pictures
from pipeline.policy.families import check_pictures
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.training.checkpoints import find_checkpoint, seal_checkpoint
from pipeline.training.dropout import without_dropout
from pipeline.training.group_sampling import sample_rows
from pipeline.training.scorers import RewardScorer
from pipeline.training.training_log import LogMetrics, TrainingLog, collect_curve
from pipeline.training.training_rows import AttachImages
from pipeline.types import Crop, CurvePoint, Decision, KeepFull, Rollout

logger = logging.getLogger(__name__)

Arm = Literal["region", "full", "free"]

Untyped = Any
"""A model of transformers, or what it returns."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_LOGGED: Final = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "reward/mrr": "reward_mrr",
    "reward/ndcg": "reward_ndcg",
    "reward/rank": "reward_rank",
    "reward/margin": "reward_margin",
    "decision/p_region": "p_region",
    "decision/p_full": "p_full",
    "decision/mass": "decision_mass",
    "decision/target": "decision_target",
    "decision/loss": "decision_loss",
    "decision/kl": "decision_kl",
    "decision/region_rate": "free_region_rate",
    "decision/malformed_rate": "malformed_rate",
    "group/zero_signal": "zero_signal_groups",
    "completions/clipped_ratio": "clipped_rate",
}
_TIMED: Final = {"step_time": "step_seconds"}
"""Logged, but kept out of the curve: an output that DVC tracks holds no times."""


class PolicyReward:
    """Scores a step's completions: every distinct crop is embedded once, all of them in full batches.

    Args:
        scorer: holds pools, baselines and every crop it has seen.
        policy: gives frames and tokenizer.
        params: weights of the reward.
    """

    __name__ = "ranking_reward"

    def __init__(self, scorer: RewardScorer, policy: Policy, params: RewardParams) -> None:
        self._scorer = scorer
        self._policy = policy
        self._params = params

    def parse(self, query_id: str, completion_ids: Sequence[int]) -> tuple[str, Decision]:
        """Return a completion's text and the decision that it states about the query's picture."""
        query = self._scorer.queries[query_id]
        text = cut_after_action(self._policy.processor.tokenizer.decode(completion_ids, skip_special_tokens=True))
        return text, self._policy.read(text, query.width_px, query.height_px)

    def score(self, query_ids: Sequence[str], decisions: Sequence[Decision]) -> list[Reward]:
        """Return what each decision earns, on its query's pool or by its own search."""
        crops = [
            (query_id, decision.box)
            for query_id, decision in zip(query_ids, decisions, strict=True)
            if isinstance(decision, Crop)
        ]
        # In one call: a scorer that searches the index multiplies once.
        views = self._scorer.score_views([*((query_id, None) for query_id in query_ids), *crops])
        kept, cropped = views[: len(query_ids)], iter(views[len(query_ids) :])
        return [
            compute_reward(
                decision, full.outcome, next(cropped).outcome if isinstance(decision, Crop) else None, self._params
            )
            for full, decision in zip(kept, decisions, strict=True)
        ]

    def __call__(
        self,
        completion_ids: list[list[int]],
        query_id: list[str],
        log_metric: Callable[[str, float], None],
        **columns: Any,
    ) -> list[float]:
        """Return one reward per completion, as TRL asks for it."""
        decisions = [self.parse(name, ids)[1] for name, ids in zip(query_id, completion_ids, strict=True)]
        rewards = self.score(query_id, decisions)
        for part in ("mrr", "ndcg", "rank", "margin"):
            log_metric(f"reward/{part}", float(np.mean([getattr(reward, part) for reward in rewards])))
        return [reward.total for reward in rewards]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Which rows of a group are made to open how; the rest are free."""

    group_size: int
    num_region: int
    num_full: int

    @property
    def is_balanced(self) -> bool:
        """Whether both arms are forced; config.py lets nobody force only one."""
        return self.num_region > 0 and self.num_full > 0

    def get_arm(self, position: int) -> Arm:
        """Return the arm of a row by its global position; groups lie one after another."""
        row = position % self.group_size
        if row < self.num_region:
            return "region"
        return "full" if row < self.num_region + self.num_full else "free"

    def list_codes(self) -> IntArray:
        """Return the code of the arm that each row of a group is made to open, (G,): MALFORMED for neither."""
        num_free = self.group_size - self.num_region - self.num_full
        return np.repeat([REGION, FULL, MALFORMED], [self.num_region, self.num_full, num_free])


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a training leaves beside the policy.

    Attributes:
        rollouts: every sampled completion, in the order sampled.
        curve: figures by step.
        step_seconds: mean time of a step, those before a resume among them.
    """

    rollouts: Sequence[Rollout]
    curve: Sequence[CurvePoint]
    step_seconds: float


class RGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO with decision-balanced groups and factorised advantages.

    Args:
        plan: how each group is made up; no forced rows gives TRL's own sampling.
        params: how advantages are made.
        policy: gives the tokens that open each arm.
        rollouts: receives every sampled completion, those before a resume among them.
        keywords: TRL's own.
    """

    def __init__(
        self,
        *,
        plan: GroupPlan,
        params: TrainParams,
        policy: Policy,
        reward: PolicyReward,
        rollouts: list[Rollout],
        **keywords: Any,
    ) -> None:
        super().__init__(reward_funcs=[reward], processing_class=policy.processor, **keywords)
        self._plan = plan
        self._params = params
        self._openings: dict[Arm, list[int]] = {
            "region": list(policy.region_ids),
            "full": list(policy.full_ids),
            "free": [],
        }
        self._reward = reward
        self._rollouts = rollouts
        self._rollouts_name = f"rollouts-{self.accelerator.process_index}.parquet"

    # -- sampling -----------------------------------------------------------------------------------------------

    def _list_arms(self, num_rows: int) -> list[Arm]:
        first = self.accelerator.process_index * num_rows
        return [self._plan.get_arm(first + row) for row in range(num_rows)]

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        *rest: Any,
        **keywords: Any,
    ) -> tuple[list[list[int]], Any]:
        """Draw rows that open as the plan says and end with their actions; the opening is part of the completion."""
        if not self.model.training:
            return super()._generate_single_turn(  # type: ignore[no-any-return]
                prompt_ids, images, multimodal_fields, num_generations, *rest, **keywords
            )
        openings = [self._openings[arm] for arm in self._list_arms(len(prompt_ids))]
        # One generation a prompt: the rows of a group differ, a server must not merge them.
        with sample_rows(self.model, self._tokenizer, openings), without_dropout(self.model):
            spoken, _ = super()._generate_single_turn(prompt_ids, images, multimodal_fields, 1, *rest, **keywords)
        completions = [drop_beyond_action(self._tokenizer, tokens, self.eos_token_ids) for tokens in spoken]
        return completions, None  # transformers' `generate`, the only sampler here, gives no log probabilities

    def _generate(self, prompts: list[Any]) -> Any:
        """Generate, and count as clipped only what the length has cut: an action may end without an end token."""
        output = super()._generate(prompts)
        clipped = [ids[-1] not in self.eos_token_ids and not is_complete(self._tokenizer, ids) for ids in output[1]]
        gathered = self.accelerator.gather(torch.tensor(clipped, device=self.accelerator.device))
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["completions/clipped_ratio"][-1] = gathered.float().mean().item()
        return output

    # -- advantages ---------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: Any,
        completions: Any,
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        rewards_N1: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        codes_B = torch.tensor([read_opening(self._tokenizer, ids)[0] for ids in completion_ids_list])
        self._codes_N = self.accelerator.gather(codes_B.to(rewards_N1.device))
        self._rewards_N = rewards_N1[:, 0]
        if self.model.training:
            self._record_rollouts(inputs, completion_ids_list)
        return rewards_N1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        rewards_BG, codes_BG = (
            rows_N.view(-1, self.num_generations).cpu().numpy() for rows_N in (self._rewards_N, self._codes_N)
        )
        opening_BT = self._mask_openings(output["completion_ids"])
        decision = self._judge_decisions(output, opening_BT, rewards_BG, codes_BG) if self._plan.is_balanced else None
        if self._params.factorised:
            assert decision is not None  # config.py wants both arms for it
            # Free rows need not carry the decision: what they open with, forced rows open with too, or it is no arm's
            # canonical opening, of which alone the loss knows the probability.
            opening_BG = spread_over_rows(decision.weight_BA, np.broadcast_to(self._plan.list_codes(), codes_BG.shape))
            # TRL takes the mean over all tokens, in which one decision weighs the less the longer answers are. Times
            # the mean length of an answer, it is a mean over decisions.
            opening_BG *= float(output["num_items_in_batch"]) / codes_BG.size
            box_BG = compute_box_advantages(rewards_BG, codes_BG)
            output["opening_mask"] = opening_BT
        else:
            opening_BG = box_BG = compute_group_advantages(rewards_BG)
        self._log_groups(rewards_BG, codes_BG)
        opening_B, box_B = (self._take_own(values_BG, opening_BT) for values_BG in (opening_BG, box_BG))
        output["advantages"] = torch.where(opening_BT, opening_B[:, None], box_B[:, None])
        return output

    def _take_own(self, values_BG: FloatArray, like: torch.Tensor) -> torch.Tensor:
        """Return this process's share of all processes' rows, (B,)."""
        first = self.accelerator.process_index * len(like)
        own = values_BG.reshape(-1)[first : first + len(like)]
        return torch.from_numpy(own).to(like.device, torch.float32)

    def _judge_decisions(
        self, output: dict[str, Any], opening_BT: torch.Tensor, rewards_BG: FloatArray, codes_BG: IntArray
    ) -> DecisionLoss:
        p_BA = reference_BA = self._compute_p_arms(output, opening_BT)
        if output.get("ref_per_token_logps") is not None:
            reference_BA = self._take_arms((output["ref_per_token_logps"] * opening_BT).sum(1).exp())
        loss = compute_decision_loss(
            compute_arm_values(rewards_BG, codes_BG),
            p_BA,
            reference_BA,
            temperature=self._params.decision_temperature,
            beta=self._params.beta,
        )
        self._log_decisions(loss, p_BA)
        return loss

    @torch.no_grad()
    def _compute_p_arms(self, output: dict[str, Any], opening_BT: torch.Tensor) -> FloatArray:
        """Return the probability of either arm's opening in all processes' groups, (B, 2), from the policy in training.

        Rows of an arm open alike, so one speaks for all, and only its opening is read.
        """
        rows_R = self._list_arm_rows(len(opening_BT))
        num_tokens = max(len(opening) for opening in self._openings.values())
        completion_ids_RT = output["completion_ids"][rows_R, :num_tokens]
        logps_RT, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"][rows_R], completion_ids_RT], dim=1),
            torch.cat([output["prompt_mask"][rows_R], output["completion_mask"][rows_R, :num_tokens]], dim=1),
            completion_ids_RT.shape[1],
            **select_pictures(output, rows_R, output["prompt_ids"].shape[1] + num_tokens),
        )
        p_B = logps_RT.new_zeros(len(opening_BT))
        p_B[rows_R] = (logps_RT * opening_BT[rows_R, :num_tokens]).sum(1).exp()
        return self._take_arms(p_B)

    def _take_arms(self, p_opening_B: torch.Tensor) -> FloatArray:
        """Return the probability of either arm's opening in every group of all processes, (B, 2)."""
        p_N = self.accelerator.gather(p_opening_B)
        arms: FloatArray = p_N[self._list_arm_rows(len(p_N))].view(-1, 2).double().cpu().numpy()
        return arms

    def _list_arm_rows(self, num_rows: int) -> list[int]:
        """Return the first row of every group that is made to open REGION and the first made to open FULL, in turn.

        Free rows may spell an opening in other tokens; forced rows have those that SFT taught.
        """
        return [group + row for group in range(0, num_rows, self.num_generations) for row in (0, self._plan.num_region)]

    def _mask_openings(self, completion_ids_BT: torch.Tensor) -> torch.Tensor:
        lengths = [read_opening(self._tokenizer, row)[1] for row in completion_ids_BT.tolist()]
        positions_T = torch.arange(completion_ids_BT.shape[1], device=completion_ids_BT.device)
        return positions_T[None] < torch.tensor(lengths, device=completion_ids_BT.device)[:, None]

    # -- loss ---------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Untyped, inputs: dict[str, Any]) -> torch.Tensor:
        self._loss_inputs = inputs
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Untyped,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **pictures: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Return log probabilities and entropies of completions, (B, T); no family here mixes experts.

        What is read without gradients (p(opening), the reference, the policy that drew) is read without dropout.
        """
        learns = torch.is_grad_enabled()
        with nullcontext() if learns else without_dropout(model), self.accelerator.autocast():
            if can_share_prompts(model):
                outputs = [
                    compute_completion_logps(
                        model,
                        input_ids[rows],
                        attention_mask[rows],
                        logits_to_keep,
                        select_pictures(pictures, rows, input_ids.shape[1]),
                    )
                    for rows in _cut(len(input_ids), batch_size)
                ]
                logps = torch.cat([output.log_probs for output in outputs])
                entropies = torch.cat([output.entropy for output in outputs]) if compute_entropy else None
            else:
                logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **pictures
                )
        if learns:
            self._leave_openings_to_the_decision(logps.detach())
        return logps, entropies, None

    def _leave_openings_to_the_decision(self, logps_BT: torch.Tensor) -> None:
        """Take the openings out of TRL's estimate of the KL.

        That estimate assumes tokens drawn from the policy. Openings are forced, so through it their KL would be
        unbounded as p falls, and would grow with the number of forced rows. Where policy and reference say the same
        it has neither value nor gradient; the exact KL is part of the decision's loss.
        """
        opening_BT = self._loss_inputs.get("opening_mask")
        if opening_BT is not None and "ref_per_token_logps" in self._loss_inputs:
            reference_BT = self._loss_inputs["ref_per_token_logps"]
            self._loss_inputs["ref_per_token_logps"] = torch.where(opening_BT, logps_BT, reference_BT)

    # -- what is watched ----------------------------------------------------------------------------------------

    def _log_groups(self, rewards_BG: FloatArray, codes_BG: IntArray) -> None:
        metrics = self._metrics["train"]
        metrics["group/zero_signal"].append(count_zero_signal(rewards_BG) / len(codes_BG))
        free_BF = codes_BG[:, self._plan.list_codes() == MALFORMED]
        if free_BF.size:
            metrics["decision/region_rate"].append(float((free_BF == REGION).mean()))
            metrics["decision/malformed_rate"].append(float((free_BF == MALFORMED).mean()))

    def _log_decisions(self, loss: DecisionLoss, p_BA: FloatArray) -> None:
        metrics = self._metrics["train"]
        metrics["decision/p_region"].append(float(p_BA[:, REGION].mean()))
        metrics["decision/p_full"].append(float(p_BA[:, FULL].mean()))
        metrics["decision/mass"].append(float(p_BA.sum(axis=1).mean()))
        metrics["decision/target"].append(float(loss.target_B.mean()))
        metrics["decision/loss"].append(float(loss.loss_B.mean()))
        metrics["decision/kl"].append(float(loss.kl_B.mean()))

    def _record_rollouts(self, inputs: list[dict[str, Any]], completion_ids: list[list[int]]) -> None:
        first = self.accelerator.process_index * len(inputs)
        names: dict[type[Decision], Literal["region", "full"]] = {Crop: "region", KeepFull: "full"}
        for row, (example, ids) in enumerate(zip(inputs, completion_ids, strict=True)):
            text, decision = self._reward.parse(example["query_id"], ids)
            self._rollouts.append(
                Rollout(
                    step=self.state.global_step + 1,
                    query_id=example["query_id"],
                    arm=self._plan.get_arm(first + row),
                    completion=text,
                    decision=names.get(type(decision), "malformed"),
                    box=decision.box if isinstance(decision, Crop) else None,
                    reward=float(self._rewards_N[first + row]),
                )
            )

    # -- resume -------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        plain = super()._get_train_sampler(dataset)
        return _EpochSampler(
            plain.data_source, plain.mini_repeat_count, plain.batch_size, plain.repeat_count, plain.shuffle, plain.seed
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        save_rollouts(folder / self._rollouts_name, self._rollouts)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            seal_checkpoint(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._rollouts[:] = load_rollouts(Path(resume_from_checkpoint) / self._rollouts_name)
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # TRL hands the weights' own names to the model in memory, where none of them fits, and only warns.
        target = self.model if model is None else model
        restored = type(target).from_pretrained(resume_from_checkpoint, local_files_only=True, dtype=target.dtype)
        target.load_state_dict(restored.state_dict())


def train_rgrpo(
    policy: Policy,
    questions: Mapping[str, str],
    scorer: RewardScorer,
    params: TrainParams,
    reward: RewardParams,
    *,
    seed: int,
    log: LogMetrics,
    checkpoints_dir: Path,
) -> TrainingRecord:
    """Train the policy in place, from the last checkpoint if there is one.

    Args:
        policy: the SFT policy; its folder is also the reference of the KL term.
        questions: query id -> question; every query has a relevant document to rank.
        scorer: scores views, loads pictures.
        params: steps, groups, rate.
        reward: weights of the reward.
        seed: order of queries and sampling.
        log: receives figures and step.
        checkpoints_dir: where checkpoints go and are looked for.

    Raises:
        ModelError: the policy cannot read a picture of some query's shape.
    """
    check_pictures(policy.get_frame, (scorer.queries[query_id] for query_id in questions))
    policy.prepare_training()
    rows = [
        {"query_id": query_id, "prompt": policy.conversation.build_messages(question)}
        for query_id, question in questions.items()
    ]
    dataset = Dataset.from_list(rows).with_transform(AttachImages(scorer.load_image))
    rollouts: list[Rollout] = []
    trainer = RGRPOTrainer(
        model=policy.model,
        args=_build_config(policy, params, seed, checkpoints_dir),
        train_dataset=dataset,
        policy=policy,
        reward=PolicyReward(scorer, policy, reward),
        plan=GroupPlan(params.group_size, params.num_region, params.num_full),
        params=params,
        rollouts=rollouts,
    )
    trainer.remove_callback(PrinterCallback)
    last = find_checkpoint(checkpoints_dir)
    if last is not None:
        logger.info("train: goes on from %s", last.name)
    sharing = share_pictures(trainer.model, trainer.ref_model)
    with sharing, track("train: r-GRPO steps", params.max_steps) as advance:
        trainer.add_callback(TrainingLog(log, advance, _LOGGED | _TIMED))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    history = trainer.state.log_history
    seconds = [point.value for point in collect_curve(history, _TIMED)]
    return TrainingRecord(
        rollouts=rollouts, curve=collect_curve(history, _LOGGED), step_seconds=float(np.mean(seconds))
    )


class _EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with an order that seed and epoch alone decide."""

    def set_epoch(self, epoch: int) -> None:
        """Take up the order of this epoch, as the Trainer asks before each one."""
        self.generator.manual_seed(self.seed + epoch)


def _cut(num_rows: int, batch_size: int | None) -> list[list[int]]:
    """Return the rows of each pass, at most `batch_size` of them."""
    size = batch_size or num_rows
    return [list(range(start, min(start + size, num_rows))) for start in range(0, num_rows, size)]


def _build_config(policy: Policy, params: TrainParams, seed: int, checkpoints_dir: Path) -> GRPOConfig:
    on_gpu = policy.model.device.type == "cuda"
    settings = GenerationSettings.sampling(policy.params.max_new_tokens, params.temperature, policy.tokens)
    return GRPOConfig(
        output_dir=str(checkpoints_dir),
        max_steps=params.max_steps,
        per_device_train_batch_size=params.queries_per_step * params.group_size,
        num_generations=params.group_size,
        num_iterations=params.updates_per_generation,
        **settings.list_trl_arguments(),
        learning_rate=params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=params.warmup_steps,
        beta=params.beta,
        scale_rewards="none",
        loss_type="dapo",
        bf16=policy.trains_in_bfloat16,
        use_cpu=not on_gpu,
        activation_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        save_steps=params.save_steps,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
    )
