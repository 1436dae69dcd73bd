"""A run that was killed goes on as if it had not been: what TRL's trainer lacks for it.

A checkpoint of a full fine-tune restores its weights (TRL's only warns that it does not), one that was cut off does not
count, and a resumed run goes on with the order of its own epoch (TRL's starts again with the first one's).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from pipeline.files.store import load_rollouts, save_rollouts
from pipeline.training.checkpoints import seal_checkpoint
from pipeline.types import Rollout


class ResumableTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer with checkpoints that hold all that a run needs to go on.

    Args:
        rollouts: every sampled completion, those before a resume among them.
        keywords: TRL's own.
    """

    def __init__(self, *, rollouts: list[Rollout], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._rollouts = rollouts
        self._rollouts_name = f"rollouts-{self.accelerator.process_index}.parquet"

    def _get_train_sampler(self, dataset: Dataset | None = None) -> RepeatSampler:
        plain = super()._get_train_sampler(dataset)
        return EpochSampler(
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


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with an order that seed and epoch alone decide."""

    def set_epoch(self, epoch: int) -> None:
        """Take up the order of this epoch, as the Trainer asks before each one."""
        self.generator.manual_seed(self.seed + epoch)
