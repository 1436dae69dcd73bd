"""r-GRPO: GRPO with decision-balanced groups (paper section 3), on TRL's GRPOTrainer.

Departures from TRL's trainer (docs/method.md gives their numbers and measurements):
- Some rows of every group are made to open with REGION, some with FULL; the rest are left free, so that a policy
  that has collapsed to one decision still sees what the other one earns, and malformed openings are still punished.
- Decision tokens and box tokens carry advantages of their own, (B, T) instead of (B,).
- A forced decision is weighted as the policy's own sampling would weigh it (`damp_decisions`), for which one short
  forward pass a query reads p(REGION) and p(FULL).
- A picture goes through the vision tower once, not once for each row of its group (`shared_pictures.py`).
- A row ends with its action (`action_end.py`); the trainer would go on until an end token.
- A checkpoint of a full fine-tune restores its weights (TRL's only warns that it does not), one that was cut off does
  not count, and a resumed run goes on with the order of its own epoch (TRL's starts again with the first one's).

Shapes: B rows of this process, N rows of all processes, G rows of a group, T tokens of a completion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
    Advantages,
    compute_advantages,
    count_zero_signal,
    damp_decisions,
)
from pipeline.core.completion import cut_after_action, parse_completion
from pipeline.core.reward import Reward, compute_reward
from pipeline.learn.action_end import drop_beyond_action, is_complete, stop_at_action
from pipeline.learn.checkpoints import find_checkpoint, seal_checkpoint
from pipeline.learn.policy import Policy, build_messages
from pipeline.learn.scorer import FrozenScorer
from pipeline.learn.shared_pictures import share_pictures
from pipeline.learn.training_log import LogMetrics, TrainingLog, collect_curve
from pipeline.learn.training_rows import AttachImages
from pipeline.progress import track
from pipeline.store import load_rollouts, save_rollouts
from pipeline.types import Crop, CurvePoint, Decision, KeepFull, Rollout

logger = logging.getLogger(__name__)

Arm = Literal["region", "full", "free"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_TOKEN_FIELDS: Final = ("mm_token_type_ids", "token_type_ids")
"""What transformers' processors say of each token: 0 for text."""

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

    def __init__(self, scorer: FrozenScorer, policy: Policy, params: RewardParams) -> None:
        self._scorer = scorer
        self._policy = policy
        self._params = params

    def parse(self, query_id: str, completion_ids: Sequence[int]) -> tuple[str, Decision]:
        """Return a completion's text and the decision that it states about the query's picture."""
        query = self._scorer.queries[query_id]
        text = cut_after_action(self._policy.processor.tokenizer.decode(completion_ids, skip_special_tokens=True))
        return text, parse_completion(text, self._policy.get_frame(query.width_px, query.height_px))

    def score(self, query_ids: Sequence[str], decisions: Sequence[Decision]) -> list[Reward]:
        """Return what each decision earns on its query's pool."""
        crops = [
            (query_id, decision.box)
            for query_id, decision in zip(query_ids, decisions, strict=True)
            if isinstance(decision, Crop)
        ]
        views = iter(self._scorer.score_views(crops))
        return [
            compute_reward(
                decision,
                self._scorer.get_baseline(query_id).outcome,
                next(views).outcome if isinstance(decision, Crop) else None,
                self._params,
            )
            for query_id, decision in zip(query_ids, decisions, strict=True)
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
        """Append each row's forced opening to its prompt, generate, and hand it back as part of the completion."""
        if not self.model.training:
            return super()._generate_single_turn(  # type: ignore[no-any-return]
                prompt_ids, images, multimodal_fields, num_generations, *rest, **keywords
            )
        forced = [self._openings[arm] for arm in self._list_arms(len(prompt_ids))]
        prompts = [[*prompt, *opening] for prompt, opening in zip(prompt_ids, forced, strict=True)]
        fields = {name: _extend_token_field(name, field, forced) for name, field in multimodal_fields.items()}
        # One generation a prompt: the rows of a group differ now, a server must not merge them.
        with stop_at_action(self.model, self._tokenizer, forced):
            spoken, _ = super()._generate_single_turn(prompts, images, fields, 1, *rest, **keywords)
        completions = [
            drop_beyond_action(self._tokenizer, [*opening, *tokens], self.eos_token_ids)
            for opening, tokens in zip(forced, spoken, strict=True)
        ]
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
        codes_B = torch.tensor([self._read_opening(ids)[0] for ids in completion_ids_list])
        self._codes_N = self.accelerator.gather(codes_B.to(rewards_N1.device))
        self._rewards_N = rewards_N1[:, 0]
        if self.model.training:
            self._record_rollouts(inputs, completion_ids_list)
        return rewards_N1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        opening_BT = self._mask_openings(output["completion_ids"])
        shape = (-1, self.num_generations)
        codes_BG = self._codes_N.view(shape).cpu().numpy()
        advantages = compute_advantages(
            self._rewards_N.view(shape).cpu().numpy(), codes_BG, factorised=self._params.factorised
        )
        decision_BG = advantages.decision_BG
        self._log_groups(advantages, codes_BG)
        if self._plan.is_balanced:  # stock groups have no use for p(opening), nor a row of either arm to read it from
            p_opening_BG = self.accelerator.gather(self._compute_p_opening(output)).view(shape).cpu().numpy()
            self._log_openings(p_opening_BG)
            if self._params.factorised:
                decision_BG = damp_decisions(
                    decision_BG,
                    codes_BG,
                    p_opening_BG,
                    saturation=self._params.decision_saturation,
                    anchor=self._params.anchor,
                )
        num_rows = len(opening_BT)
        first = self.accelerator.process_index * num_rows
        decision_B, argument_B = (
            torch.from_numpy(values.reshape(-1)[first : first + num_rows]).to(opening_BT.device, torch.float32)
            for values in (decision_BG, advantages.argument_BG)
        )
        output["advantages"] = torch.where(opening_BT, decision_B[:, None], argument_B[:, None])
        return output

    @torch.no_grad()
    def _compute_p_opening(self, output: dict[str, Any]) -> torch.Tensor:
        """Return the probability of each row's opening under the policy that is being trained, (B,).

        Rows of a group share prompt and picture, so one row of each arm speaks for all of the arm, and only its
        opening is read. (Malformed rows open in several ways, of which one is read; nothing uses their value.)
        """
        codes_B = [self._read_opening(ids)[0] for ids in output["completion_ids"].tolist()]
        arms_B = [(row // self.num_generations, code) for row, code in enumerate(codes_B)]
        rows_R = [arms_B.index(arm) for arm in dict.fromkeys(arms_B)]
        num_tokens = max(len(opening) for opening in self._openings.values())
        completion_ids_RT = output["completion_ids"][rows_R, :num_tokens]
        num_row_tokens = output["prompt_ids"].shape[1] + completion_ids_RT.shape[1]
        logps_RT, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"][rows_R], completion_ids_RT], dim=1),
            torch.cat([output["prompt_mask"][rows_R], output["completion_mask"][rows_R, :num_tokens]], dim=1),
            completion_ids_RT.shape[1],
            **_select_pictures(output, rows_R, num_row_tokens),
        )
        p_R = (logps_RT * self._mask_openings(completion_ids_RT)).sum(1).exp()
        position = {arms_B[row]: place for place, row in enumerate(rows_R)}
        p_B: torch.Tensor = p_R[[position[arm] for arm in arms_B]]
        return p_B

    def _read_opening(self, completion_ids: Sequence[int]) -> tuple[int, int]:
        """Return the code of the arm that a completion opens and the number of tokens that say so."""
        region, full = self._openings["region"], self._openings["full"]
        if list(completion_ids[: len(region)]) == region:
            return REGION, len(region)
        if list(completion_ids[: len(full)]) == full:
            return FULL, len(full)
        return MALFORMED, 1

    def _mask_openings(self, completion_ids_BT: torch.Tensor) -> torch.Tensor:
        lengths = [self._read_opening(row)[1] for row in completion_ids_BT.tolist()]
        positions_T = torch.arange(completion_ids_BT.shape[1], device=completion_ids_BT.device)
        return positions_T[None] < torch.tensor(lengths, device=completion_ids_BT.device)[:, None]

    # -- what is watched ----------------------------------------------------------------------------------------

    def _log_groups(self, advantages: Advantages, codes_BG: IntArray) -> None:
        metrics = self._metrics["train"]
        metrics["group/zero_signal"].append(count_zero_signal(advantages) / len(codes_BG))
        free_BF = codes_BG[:, self._list_arms_of_group() == "free"]
        if free_BF.size:
            metrics["decision/region_rate"].append(float((free_BF == REGION).mean()))
            metrics["decision/malformed_rate"].append(float((free_BF == MALFORMED).mean()))

    def _log_openings(self, p_opening_BG: FloatArray) -> None:
        # Every query has rows of both forced arms, so their sum is a probability.
        arms_G = self._list_arms_of_group()
        p_region, p_full = (float(p_opening_BG[:, arms_G == arm].mean()) for arm in ("region", "full"))
        metrics = self._metrics["train"]
        metrics["decision/p_region"].append(p_region)
        metrics["decision/p_full"].append(p_full)
        metrics["decision/mass"].append(p_region + p_full)

    def _list_arms_of_group(self) -> npt.NDArray[np.str_]:
        return np.asarray([self._plan.get_arm(row) for row in range(self.num_generations)])

    def _record_rollouts(self, inputs: list[dict[str, Any]], completion_ids: list[list[int]]) -> None:
        first = self.accelerator.process_index * len(inputs)
        names: dict[type[Decision], Literal["region", "full"]] = {Crop: "region", KeepFull: "full"}
        for row, (example, ids) in enumerate(zip(inputs, completion_ids, strict=True)):
            text, decision = self._reward.parse(example["query_id"], ids)
            self._rollouts.append(
                Rollout(
                    step=self.state.global_step,
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
    scorer: FrozenScorer,
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
        questions: query id -> question; every query has a pool with a positive.
        scorer: scores views, loads pictures.
        params: steps, groups, rate.
        reward: weights of the reward.
        seed: order of queries and sampling.
        log: receives figures and step.
        checkpoints_dir: where checkpoints go and are looked for.

    Raises:
        ModelError: the policy cannot read a picture of some query's shape.
    """
    for query_id in questions:  # a picture that the policy cannot read stops the run before it begins
        policy.get_frame(scorer.queries[query_id].width_px, scorer.queries[query_id].height_px)
    policy.prepare_training()
    rows = [
        {"query_id": query_id, "prompt": build_messages(question, policy.params)}
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


def _build_config(policy: Policy, params: TrainParams, seed: int, checkpoints_dir: Path) -> GRPOConfig:
    on_gpu = policy.model.device.type == "cuda"
    return GRPOConfig(
        output_dir=str(checkpoints_dir),
        max_steps=params.max_steps,
        per_device_train_batch_size=params.queries_per_step * params.group_size,
        num_generations=params.group_size,
        num_iterations=params.updates_per_generation,
        max_completion_length=policy.params.max_new_tokens,
        learning_rate=params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=params.warmup_steps,
        beta=params.beta,
        temperature=params.temperature,
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


def _select_pictures(output: Mapping[str, Any], rows_R: Sequence[int], num_tokens: int) -> dict[str, Any]:
    """Return what a forward pass over some rows needs beside tokens; each row has one picture.

    Args:
        output: a whole batch, as TRL's trainer makes it.
        rows_R: the rows wanted, in order.
        num_tokens: length that the rows are cut to, prompt included.
    """
    fields: dict[str, Any] = {"num_images": [1] * len(rows_R)}
    for name in ("image_grid_thw", "pixel_attention_mask", "image_sizes"):
        if name in output:
            fields[name] = output[name][rows_R]
    if "image_grid_thw" in output:  # Qwen lays the patches of all pictures end to end
        patches = output["pixel_values"].split(output["image_grid_thw"].prod(1).tolist())
        fields["pixel_values"] = torch.cat([patches[row] for row in rows_R])
    else:
        fields["pixel_values"] = output["pixel_values"][rows_R]
    for name in _TOKEN_FIELDS:
        if name in output:
            fields[name] = output[name][rows_R, :num_tokens]
    return fields


def _extend_token_field(name: str, field: Any, forced: list[list[int]]) -> Any:
    """Lengthen a per-token field by the forced tokens, which are text (type 0)."""
    if name not in _TOKEN_FIELDS:
        return field
    return [[*row, *[0] * len(opening)] for row, opening in zip(field, forced, strict=True)]
