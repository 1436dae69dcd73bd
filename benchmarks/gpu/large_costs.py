"""What a shape costs on one device: answers by batch size, the parts of an r-GRPO step, embedding beside bare forward.

Everything runs through the pipeline's own code, on folders, pictures and pools that it would read.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from transformers import AutoModel

from benchmarks.gpu.device import measure_on, read_clock, time_calls
from benchmarks.gpu.script import Ending, speak
from benchmarks.rewards.setting import Setting
from benchmarks.timing import Spread, compute_spread
from pipeline.config import PolicyParams, TrainParams
from pipeline.files.images import crop_view
from pipeline.planning.sizes import read_shapes
from pipeline.policy.policy import Policy, load_policy
from pipeline.policy.vllm_engine import VllmPolicy
from pipeline.retrieval.encoder import PictureTask, encode_in_stream
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.grpo.trainer import RGRPOTrainer
from pipeline.training.seeding import seed_everything

Batch = tuple[list[Image.Image], list[str]]
"""Pictures, decoded, and their questions."""

_PARTS: Final = {"generation": "_generate", "reward": "_calculate_rewards"}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerCost:
    """Evaluation at one batch size; figures are None where memory ran out.

    Attributes:
        engine: transformers or vllm.
        ending: whether answers end with their action or go on to the last token.
        batch_size: queries decoded together.
        num_tokens: tokens decoded for each answer, padding included; None where the engine does not say.
        samples_per_s: answers a second, pictures decoded beforehand.
        s_per_sample: the inverse.
        peak_gb: on the device; None where not measured.
    """

    engine: str
    ending: Ending
    batch_size: int
    num_tokens: float | None
    samples_per_s: float | None
    s_per_sample: float | None
    peak_gb: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """A step of r-GRPO, the first one not counted; figures are None where memory ran out.

    Attributes:
        ending: as for answers.
        num_rows: completions of a step.
        num_tokens: tokens decoded for each, padding included.
        generation_s: seconds from the prompts to all completions.
        reward_s: seconds of parsing, crops, embedding and ranking.
        update_s: the rest: pictures decoded, reference, loss, gradients, optimiser.
        peak_gb: on the device; None where not measured.
    """

    ending: Ending
    num_rows: int
    num_tokens: float | None
    generation_s: float | None
    reward_s: float | None
    update_s: float | None
    peak_gb: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingCost:
    """Embedding pictures from disk beside the forward pass alone; figures are None where memory ran out.

    Attributes:
        batch_size: pictures that go through the scorer at once.
        ours_per_s: pictures a second, decoding, resizing and transfers included.
        bare_per_s: pictures a second of the model alone on pixels that lie on the device.
        peak_gb: on the device; None where not measured.
    """

    batch_size: int
    ours_per_s: float | None
    bare_per_s: float | None
    peak_gb: float | None


def measure_answers(policy: Policy, batch: Batch, ending: Ending, side_px: int, num_calls: int) -> AnswerCost:
    """Return what answers by transformers to one batch cost."""
    images, questions = batch
    policy.batch_size = len(images)

    def work() -> tuple[Spread, float]:
        with speak(policy, ending, side_px) as lengths:
            spread = time_calls(lambda: policy.decide(images, questions), policy.model.device, num_calls)
        return spread, sum(lengths) / len(lengths)

    measured = measure_on(policy.model.device, work)
    seconds, num_tokens = measured.result or (None, None)
    return _build_answer_cost("transformers", ending, len(images), num_tokens, seconds, measured.peak_gb)


def measure_vllm_answers(policy_dir: Path, params: PolicyParams, batch: Batch, num_calls: int) -> AnswerCost:
    """Return what answers by vLLM to one batch cost; random weights end none of them early."""
    images, questions = batch
    policy = VllmPolicy(policy_dir, params, len(images))
    device = torch.device("cuda")
    measured = measure_on(device, lambda: time_calls(lambda: policy.decide(images, questions), device, num_calls))
    # vLLM keeps its tensors in a process of its own, where this one's counter sees nothing.
    return _build_answer_cost("vllm", "longest", len(images), None, measured.result, None)


def measure_step(
    policy_dir: Path, params: PolicyParams, train: TrainParams, setting: Setting, ending: Ending, side_px: int
) -> StepCost:
    """Return what a step of r-GRPO costs, on a policy that is opened afresh."""
    seed_everything(setting.params.seed)
    policy = load_policy(policy_dir, params)
    device = policy.model.device
    ends: list[float] = []

    def work() -> tuple[dict[str, float], float]:
        with (
            tempfile.TemporaryDirectory() as scratch,
            _time_parts(device) as parts,
            speak_in_training(policy, ending, side_px) as lengths,
        ):
            train_rgrpo(
                policy,
                setting.questions,
                setting.open_scorer(),
                train,
                setting.params.reward,
                seed=setting.params.seed,
                log=lambda _figures, _step: ends.append(read_clock(device)),
                checkpoints_dir=Path(scratch),
            )
        return _split_steps(parts, ends), sum(lengths) / len(lengths)

    measured = measure_on(device, work)
    parts_s, num_tokens = measured.result or ({}, None)
    return StepCost(
        ending=ending,
        num_rows=train.queries_per_step * train.group_size,
        num_tokens=num_tokens,
        generation_s=parts_s.get("generation"),
        reward_s=parts_s.get("reward"),
        update_s=parts_s.get("update"),
        peak_gb=measured.peak_gb,
    )


@contextmanager
def speak_in_training(policy: Policy, ending: Ending, side_px: int) -> Iterator[list[int]]:
    """Script the policy as `speak` does, after an adapter has been put on it."""
    policy.prepare_training()
    with speak(policy, ending, side_px) as lengths:
        yield lengths


def measure_embedding(setting: Setting, num_images: int, num_calls: int) -> EmbeddingCost:
    """Return what embedding pictures costs: as stage index does it, and the forward pass alone."""
    params, encoder, batch_size = setting.params.scorer, setting.encoder, setting.params.batches.scorer
    size = (encoder.input_size_px, encoder.input_size_px)
    paths = [query.image_path for query in setting.queries.values()]
    tasks = [PictureTask(1, _Opening(setting, paths[number % len(paths)], size)) for number in range(num_images)]
    device = torch.device(params.device)

    def embed() -> None:
        for _ in encode_in_stream(encoder, tasks, batch_size=batch_size):
            pass

    dtype = "auto" if device.type == "cuda" else torch.float32
    model = AutoModel.from_pretrained(params.path, local_files_only=True, dtype=dtype).to(device).eval()
    pixels = torch.rand(batch_size, 3, *size, device=device, dtype=model.dtype)

    @torch.inference_mode()
    def go_forward() -> None:
        for _ in range(num_images // batch_size):
            model.get_image_features(pixel_values=pixels)

    measured = measure_on(
        device, lambda: (time_calls(embed, device, num_calls), time_calls(go_forward, device, num_calls))
    )
    ours, bare = measured.result or (None, None)
    return EmbeddingCost(
        batch_size=batch_size,
        ours_per_s=None if ours is None else num_images / ours.median,
        bare_per_s=None if bare is None else num_images / bare.median,
        peak_gb=measured.peak_gb,
    )


def count_prompt_tokens(policy: Policy, batch: Batch) -> int:
    """Return the tokens of the first prompt, those of its picture among them."""
    image, question = batch[0][0], batch[1][0]
    prompt = policy.conversation.write_prompt(question)
    return int(policy.processor(text=[prompt], images=[[image]], return_tensors="pt")["input_ids"].shape[1])


def count_parameters(folder: Path) -> int:
    """Return the weights of a checkpoint, as its files say."""
    return sum(math.prod(shape) for shape in read_shapes(folder).values())


def load_batch(setting: Setting, batch_size: int) -> Batch:
    """Return as many queries as a batch takes, pictures decoded; small worlds give some of them more than once."""
    queries = list(setting.queries.values())
    chosen = [queries[number % len(queries)] for number in range(batch_size)]
    return [setting.pictures.load(query.image_path) for query in chosen], [query.question for query in chosen]


@dataclass(frozen=True, slots=True)
class _Opening:
    """Opens one picture at the scorer's size, in a thread of the encoder's stream."""

    setting: Setting
    path: str
    size: tuple[int, int]

    def __call__(self) -> Sequence[Image.Image]:
        return [crop_view(self.setting.pictures.load(self.path), None, self.size)]


def _build_answer_cost(
    engine: str,
    ending: Ending,
    batch_size: int,
    num_tokens: float | None,
    seconds: Spread | None,
    peak_gb: float | None,
) -> AnswerCost:
    return AnswerCost(
        engine=engine,
        ending=ending,
        batch_size=batch_size,
        num_tokens=num_tokens,
        samples_per_s=None if seconds is None else batch_size / seconds.median,
        s_per_sample=None if seconds is None else seconds.median / batch_size,
        peak_gb=peak_gb,
    )


@contextmanager
def _time_parts(device: torch.device) -> Iterator[dict[str, list[float]]]:
    """Note the seconds of each call of the trainer's parts."""
    seconds: dict[str, list[float]] = {part: [] for part in _PARTS}
    originals = {part: getattr(RGRPOTrainer, method) for part, method in _PARTS.items()}

    def watch(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as TRL has it
            start = read_clock(device)
            result = original(*arguments, **keywords)
            seconds[part].append(read_clock(device) - start)
            return result

        return timed

    for part, original in originals.items():
        setattr(RGRPOTrainer, _PARTS[part], watch(part, original))
    try:
        yield seconds
    finally:
        for part, original in originals.items():
            setattr(RGRPOTrainer, _PARTS[part], original)


def _split_steps(parts: dict[str, list[float]], ends: Sequence[float]) -> dict[str, float]:
    """Return the median seconds of each part and of the rest, over the steps after the first."""
    totals = [end - start for start, end in pairwise(ends)]
    later = {part: seconds[1 : 1 + len(totals)] for part, seconds in parts.items()}
    rest = [total - sum(spent) for total, *spent in zip(totals, *later.values(), strict=True)]
    return {part: compute_spread(seconds).median for part, seconds in (later | {"update": rest}).items()}
