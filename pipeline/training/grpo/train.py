"""One training by r-GRPO: what TRL is told, what is logged, what is left."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig

from pipeline.config import RewardParams, TrainParams
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.decoding.shared_pictures import share_pictures
from pipeline.policy.families import check_pictures
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.training.checkpoints import find_checkpoint
from pipeline.training.grpo.groups import GroupPlan
from pipeline.training.grpo.reward import PolicyReward
from pipeline.training.grpo.trainer import RGRPOTrainer
from pipeline.training.scorers import RewardScorer
from pipeline.training.training_log import LogMetrics, TrainingLog, collect_curve
from pipeline.training.training_rows import AttachImages
from pipeline.types import CurvePoint, Rollout

logger = logging.getLogger(__name__)

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
    rollouts: list[Rollout] = []
    trainer = RGRPOTrainer(
        model=policy.model,
        args=build_config(policy, params, seed, checkpoints_dir),
        train_dataset=_build_dataset(policy, questions, scorer),
        policy=policy,
        reward=PolicyReward(scorer, policy, reward),
        plan=GroupPlan(params.group_size, params.num_region, params.num_full),
        params=params,
        rollouts=rollouts,
    )
    history = _run(trainer, params.max_steps, log, checkpoints_dir)
    seconds = [point.value for point in collect_curve(history, _TIMED)]
    return TrainingRecord(
        rollouts=rollouts, curve=collect_curve(history, _LOGGED), step_seconds=float(np.mean(seconds))
    )


def _build_dataset(policy: Policy, questions: Mapping[str, str], scorer: RewardScorer) -> Dataset:
    rows = [
        {"query_id": query_id, "prompt": policy.conversation.build_messages(question)}
        for query_id, question in questions.items()
    ]
    return Dataset.from_list(rows).with_transform(AttachImages(scorer.load_image))


def _run(trainer: RGRPOTrainer, max_steps: int, log: LogMetrics, checkpoints_dir: Path) -> list[dict[str, float]]:
    """Train, from the last checkpoint if there is one, and return the trainer's own log."""
    trainer.remove_callback(PrinterCallback)
    last = find_checkpoint(checkpoints_dir)
    if last is not None:
        logger.info("train: goes on from %s", last.name)
    sharing = share_pictures(trainer.model, trainer.ref_model)
    with sharing, track("train: r-GRPO steps", max_steps) as advance:
        trainer.add_callback(TrainingLog(log, advance, _LOGGED | _TIMED))
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    history: list[dict[str, float]] = trainer.state.log_history
    return history


def build_config(policy: Policy, params: TrainParams, seed: int, checkpoints_dir: Path) -> GRPOConfig:
    """Return what TRL's trainer is told.

    Args:
        policy: in training; gives tokens, precision and device.
        params: steps, groups, rate.
        seed: order of queries and sampling.
        checkpoints_dir: where checkpoints go.
    """
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
