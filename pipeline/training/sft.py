"""SFT warm-up: the policy learns to speak the labels that the frozen scorer gave, through TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from pipeline.config import WarmupParams
from pipeline.core.completion import format_decision
from pipeline.policy.conversation import Message
from pipeline.policy.families import FrameOf
from pipeline.policy.policy import Policy
from pipeline.process.progress import track
from pipeline.training.training_log import LogMetrics, TrainingLog, collect_curve
from pipeline.training.training_rows import AttachImages
from pipeline.types import Box, Crop, CurvePoint, KeepFull, RegionLabel

_LOGGED = {
    "loss": "sft_loss",
    "mean_token_accuracy": "sft_token_accuracy",
    "learning_rate": "sft_learning_rate",
}


@dataclass(frozen=True, slots=True)
class SftExample:
    """One label with the question that it answers."""

    label: RegionLabel
    question: str


def train_sft(
    policy: Policy,
    examples: Sequence[SftExample],
    load_image: Callable[[str], Image.Image],
    params: WarmupParams,
    *,
    seed: int,
    log: LogMetrics,
    scratch_dir: Path,
) -> list[CurvePoint]:
    """Train the policy in place and return loss, accuracy and rate by step.

    Args:
        policy: the base model.
        examples: what to learn; one completion each.
        load_image: query id -> upright picture.
        params: epochs, rate, batch.
        seed: order of the examples.
        log: receives figures and step.
        scratch_dir: the Trainer's folder; nothing in it is kept.
    """
    policy.prepare_training()
    rows = [_build_row(policy, example) for example in examples]
    dataset = Dataset.from_list(rows).with_transform(_AttachAnswers(load_image, policy.get_frame))
    arguments = SFTConfig(
        output_dir=str(scratch_dir),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=params.warmup_steps,
        max_length=None,
        bf16=policy.trains_in_bfloat16,
        use_cpu=policy.model.device.type == "cpu",
        dataloader_pin_memory=policy.model.device.type == "cuda",
        activation_checkpointing=policy.model.device.type == "cuda",
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
    )
    trainer = SFTTrainer(model=policy.model, args=arguments, train_dataset=dataset, processing_class=policy.processor)
    num_steps = -(-len(examples) // params.batch_size) * params.epochs
    with track("warmup: SFT steps", round(num_steps)) as advance:
        trainer.add_callback(TrainingLog(log, advance, _LOGGED))
        trainer.remove_callback(PrinterCallback)  # the progress line says what people need
        trainer.train()
    return collect_curve(trainer.state.log_history, _LOGGED)


def _build_row(policy: Policy, example: SftExample) -> dict[str, Any]:
    label = example.label
    return {
        "query_id": label.query_id,
        "prompt": policy.conversation.build_messages(example.question),
        "box": None if label.box is None else [label.box.x0, label.box.y0, label.box.x1, label.box.y1],
    }


class _AttachAnswers(AttachImages):
    """Adds each row's picture and, since only then its size is known, the answer that names the box on it.

    Args:
        load_image: query id -> upright picture.
        get_frame: the policy's frame by size of the picture.
    """

    def __init__(self, load_image: Callable[[str], Image.Image], get_frame: FrameOf) -> None:
        super().__init__(load_image)
        self._get_frame = get_frame

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return the rows of a batch with columns `images` and `completion`."""
        rows = super().__call__(batch)
        rows["completion"] = [
            self._answer(box, images[0]) for box, images in zip(batch["box"], rows["images"], strict=True)
        ]
        return rows

    def _answer(self, box: list[float] | None, image: Image.Image) -> list[Message]:
        decision = KeepFull() if box is None else Crop(Box(*box))
        answer = format_decision(decision, self._get_frame(*image.size))
        return [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
