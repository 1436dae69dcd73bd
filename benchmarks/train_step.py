"""A step of our trainer with the real reward against a step of TRL's stock trainer with a constant one.

Both get one configuration, one model, the same queries and freshly opened pictures. What differs besides the method:
ours runs each prompt and picture once, the stock trainer once for each row of their group; and how much is generated,
so that is counted too: our rows end with their actions.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOTrainer

from benchmarks.rewards.setting import Setting
from benchmarks.timing import Cost, Spread, compute_ratios, compute_spread, do_in_turn
from pipeline.config import TrainParams
from pipeline.policy.policy import Policy, load_policy
from pipeline.reranking.scorer import FrozenScorer
from pipeline.training.grpo.train import build_config, train_rgrpo
from pipeline.training.seeding import seed_everything
from pipeline.training.training_log import TrainingLog
from pipeline.training.training_rows import AttachImages

# trl 1.16 asks transformers 5.23 by its old name, before every generation.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainFigures:
    """What a training step costs, after the first one.

    Attributes:
        rows: completions of a step.
        ours_s: seconds of our step, over all steps of all blocks.
        stock_s: seconds of the stock step.
        ours_cpu_s: CPU seconds of our step.
        stock_cpu_s: CPU seconds of the stock step.
        stock_ratio: ours over stock, medians of two blocks that ran one after the other.
        stock_ratio_cpu: the same in CPU time.
        our_positions: positions decoded for a row of a step, forced opening and padding included.
        stock_positions: the same for the stock trainer.
    """

    rows: int
    ours_s: Spread
    stock_s: Spread
    ours_cpu_s: Spread
    stock_cpu_s: Spread
    stock_ratio: Spread
    stock_ratio_cpu: Spread
    our_positions: float
    stock_positions: float


@dataclass(slots=True)
class Stopwatch:
    """Notes the time at the end of every step, and what `generate` was asked to decode."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    num_positions: list[int] = field(default_factory=list)

    def note_step(self, figures: Mapping[str, float], step: int) -> None:
        """Note one step's end; the Trainer's log calls it."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def list_steps(self) -> list[Cost]:
        """Return what each step after the first cost."""
        walls, cpus = pairwise(self.wall), pairwise(self.cpu)
        return [Cost(wall[1] - wall[0], cpu[1] - cpu[0]) for wall, cpu in zip(walls, cpus, strict=True)]

    def compute_step_cost(self) -> Cost:
        """Return the median cost of the steps after the first."""
        steps = self.list_steps()
        wall, cpu = ([cost.wall_s for cost in steps], [cost.cpu_s for cost in steps])
        return Cost(compute_spread(wall).median, compute_spread(cpu).median)

    @contextmanager
    def count_positions(self, policy: Policy) -> Iterator[None]:
        """Count what the policy's model decodes meanwhile."""
        generate = policy.model.generate

        def count(*arguments: Any, **keywords: Any) -> Any:
            output = generate(*arguments, **keywords)
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            self.num_positions.append(sequences.shape[1] - keywords["input_ids"].shape[1])
            return output

        policy.model.generate = count
        try:
            yield
        finally:
            del policy.model.generate


def measure_train_step(setting: Setting, train: TrainParams, *, num_blocks: int, steps_per_block: int) -> TrainFigures:
    """Return the figures of short trainings, ours and stock in turn.

    Args:
        setting: scorer and queries.
        train: queries of a step, group and method.
        num_blocks: trainings of either kind.
        steps_per_block: steps of each, the first of which is not counted.
    """
    train = train.model_copy(update={"max_steps": steps_per_block})
    ours, stock = [], []
    for block in range(num_blocks):
        our_watch, stock_watch = do_in_turn(
            partial(train_ours, setting, train), partial(train_stock, setting, train), block
        )
        ours.append(our_watch)
        stock.append(stock_watch)
    pairs = [(a.compute_step_cost(), b.compute_step_cost()) for a, b in zip(ours, stock, strict=True)]
    stock_ratio, stock_ratio_cpu = compute_ratios(pairs)
    our_steps, stock_steps = ([cost for watch in watches for cost in watch.list_steps()] for watches in (ours, stock))
    return TrainFigures(
        rows=train.queries_per_step * train.group_size,
        ours_s=compute_spread([cost.wall_s for cost in our_steps]),
        stock_s=compute_spread([cost.wall_s for cost in stock_steps]),
        ours_cpu_s=compute_spread([cost.cpu_s for cost in our_steps]),
        stock_cpu_s=compute_spread([cost.cpu_s for cost in stock_steps]),
        stock_ratio=stock_ratio,
        stock_ratio_cpu=stock_ratio_cpu,
        our_positions=_compute_mean_positions(ours),
        stock_positions=_compute_mean_positions(stock),
    )


def train_ours(setting: Setting, train: TrainParams) -> Stopwatch:
    """Train a fresh copy of the policy with r-GRPO and the real reward."""
    policy, scorer, watch = _start(setting)
    with tempfile.TemporaryDirectory() as scratch, watch.count_positions(policy):
        train_rgrpo(
            policy,
            setting.questions,
            scorer,
            train,
            setting.params.reward,
            seed=setting.params.seed,
            log=watch.note_step,
            checkpoints_dir=Path(scratch),
        )
    return watch


def train_stock(setting: Setting, train: TrainParams) -> Stopwatch:
    """Train a fresh copy of the policy with TRL's trainer and a reward that is always 0."""
    policy, scorer, watch = _start(setting)
    rows = [
        {"query_id": query_id, "prompt": policy.conversation.build_messages(question)}
        for query_id, question in setting.questions.items()
    ]
    with tempfile.TemporaryDirectory() as scratch, watch.count_positions(policy):
        trainer = GRPOTrainer(
            model=policy.model,
            args=build_config(policy, train, setting.params.seed, Path(scratch)),
            train_dataset=Dataset.from_list(rows).with_transform(AttachImages(scorer.load_image)),
            processing_class=policy.processor,
            reward_funcs=[give_nothing],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(TrainingLog(watch.note_step, lambda num_steps: None, {"reward": "reward"}))
        trainer.train()
    return watch


def give_nothing(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Return 0 for every completion."""
    return [0.0] * len(completion_ids)


def _start(setting: Setting) -> tuple[Policy, FrozenScorer, Stopwatch]:
    seed_everything(setting.params.seed)
    return load_policy(setting.params.policy.path, setting.params.policy), setting.open_scorer(), Stopwatch()


def _compute_mean_positions(watches: list[Stopwatch]) -> float:
    counts = [count for watch in watches for count in watch.num_positions]
    return sum(counts) / len(counts)
