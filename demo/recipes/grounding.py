"""Teach the tiny LLaVA to point: the answer's cross-entropy beside a dense loss on every image patch.

From the answer alone a model of this size does not learn where things are (docs/log.md). So while it learns to
answer, linear heads, thrown away afterwards, must read from each patch of the vision tower what lies there: its
names, the thing's box, and the parts it plays in the scene ("top left", "largest"); and from each patch inside the
decoder, which reads the question first, whether it is what the question means.

The model learns both forms of the answer, but not when to use which: a fixed share of training answers, drawn at
random, keeps the full image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from demo.recipes.contrast import compute_lr_factor
from demo.recipes.tiny_llava import ASSISTANT, END, FRAME_UNITS, HIDDEN_SIZE, IMAGE, NUM_PATCHES, USER, find_word_ids
from demo.recipes.training_scenes import TrainingScene, normalise
from pipeline.core.boxes import Frame, compute_iou
from pipeline.core.completion import format_decision, parse_completion
from pipeline.types import Box, Crop, KeepFull

# Shapes: B scenes, R questions a scene, N = B * R, P patches, H hidden, T tokens.
FRAME: Final = Frame(FRAME_UNITS, FRAME_UNITS)
_GRID: Final = math.isqrt(NUM_PATCHES)

Ask = Callable[[str, np.random.Generator], str]


@dataclass(frozen=True, kw_only=True)
class GroundingRecipe:
    """Settings of the training; a run is named by these and the seed."""

    num_steps: int = 1500
    num_scenes_per_step: int = 64
    num_questions_per_scene: int = 2
    learning_rate: float = 1.5e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    full_share: float = 0.15
    dense_weight: float = 1.0


@dataclass(frozen=True)
class Lessons:
    """What a model learns pointing from, or is measured on.

    Attributes:
        scenes: N of them.
        pixels_N: (N, 3, 112, 112) their pictures.
        vocabularies: the words that each of a thing's names is one of.
        ask: words a question about what a phrase points at.
    """

    scenes: Sequence[TrainingScene]
    pixels_N: npt.NDArray[np.uint8]
    vocabularies: Sequence[Sequence[str]]
    ask: Ask


class DenseHeads(nn.Module):
    """Read-outs of one patch, used in training only.

    Names are read from what the decoder is shown of a patch, against the embeddings of the very words that questions
    use, so that to find a patch the decoder has only to compare it with the words. Box and parts are linear read-outs
    of the vision tower's state.

    Args:
        vocabularies: of each vocabulary, the tokens of each name; a name of several words is their mean.
        num_roles: parts that a thing can play in a scene.
    """

    def __init__(self, vocabularies: Sequence[Sequence[Sequence[int]]], num_roles: int) -> None:
        super().__init__()
        self.vocabularies = [[torch.tensor(tokens) for tokens in names] for names in vocabularies]
        self.background = nn.Parameter(torch.zeros(len(vocabularies), HIDDEN_SIZE))
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.read = nn.Linear(HIDDEN_SIZE, 4 * (FRAME_UNITS + 1) + num_roles)
        self.match = nn.Linear(HIDDEN_SIZE, 1)

    def forward(
        self,
        vision_BPH: torch.Tensor,
        shown_BPH: torch.Tensor,
        words_VH: torch.Tensor,
        targets: DenseTargets,
    ) -> torch.Tensor:
        """Return the summed loss of the read-outs, a scalar.

        Args:
            vision_BPH: states of the vision tower.
            shown_BPH: the same after the projector.
            words_VH: the decoder's token embeddings.
            targets: what lies under each patch.
        """
        on_thing_BP = targets.names_KBP[0] < len(self.vocabularies[0])
        box, role = (
            self.read(vision_BPH).float()[on_thing_BP].split([4 * (FRAME_UNITS + 1), targets.role_BPR.shape[-1]], -1)
        )
        named = [
            self._name(shown_BPH, torch.stack([words_VH[tokens].mean(0) for tokens in names]), background, names_BP)
            for names, background, names_BP in zip(self.vocabularies, self.background, targets.names_KBP, strict=True)
        ]
        return (
            torch.stack(named).sum()
            + 0.5 * F.cross_entropy(box.reshape(-1, FRAME_UNITS + 1), targets.box_BP4[on_thing_BP].flatten())
            + F.binary_cross_entropy_with_logits(role, targets.role_BPR[on_thing_BP])
        )

    def _name(
        self, shown_BPH: torch.Tensor, words_CH: torch.Tensor, background_H: torch.Tensor, names_BP: torch.Tensor
    ) -> torch.Tensor:
        classes = torch.cat([words_CH, background_H[None]])
        logits = shown_BPH @ classes.T * self.log_scale.exp()
        return F.cross_entropy(logits.float().flatten(0, 1), names_BP.flatten())

    def compute_match_loss(self, states_NPH: torch.Tensor, asked_NP: torch.Tensor) -> torch.Tensor:
        """Return the loss of telling the patches that the question means from all others, a scalar.

        Args:
            states_NPH: the decoder's states at the picture's tokens, before its last layer.
            asked_NP: 1 where the asked thing lies.
        """
        return F.binary_cross_entropy_with_logits(self.match(states_NPH).squeeze(-1).float(), asked_NP)


@dataclass(frozen=True)
class DenseTargets:
    """What lies under each patch: a name of each of K vocabularies (one past the last is background), box, parts."""

    names_KBP: torch.Tensor
    box_BP4: torch.Tensor
    role_BPR: torch.Tensor

    def pick(self, rows_B: torch.Tensor) -> DenseTargets:
        """Return the targets of some scenes."""
        return DenseTargets(self.names_KBP[:, rows_B], self.box_BP4[rows_B], self.role_BPR[rows_B])


def build_dense_targets(
    scenes: Sequence[TrainingScene], vocabularies: Sequence[Sequence[str]], roles: Sequence[str]
) -> DenseTargets:
    """Lay each scene's things over the patch grid: a patch belongs to the thing under its centre."""
    count = len(scenes)
    names = torch.stack([torch.full((count, _GRID, _GRID), len(words)) for words in vocabularies])
    box = torch.zeros((count, _GRID, _GRID, 4), dtype=torch.long)
    role = torch.zeros((count, _GRID, _GRID, len(roles)))
    for row, scene in enumerate(scenes):
        for position, thing in enumerate(scene.things):
            inside = _cover(thing.box)
            for vocabulary, (words, name) in enumerate(zip(vocabularies, thing.names, strict=True)):
                names[vocabulary, row][inside] = words.index(name)
            box[row][inside] = torch.tensor([round(edge * FRAME_UNITS) for edge in thing.box.as_tuple()])
            played = {reference.phrase for reference in scene.references if reference.thing == position}
            role[row][inside] = torch.tensor([float(name in played) for name in roles])
    return DenseTargets(names.flatten(2), box.flatten(1, 2), role.flatten(1, 2))


def train_grounding(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Lessons,
    recipe: GroundingRecipe,
    seed: int,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train model in place.

    Args:
        model: untrained, or trained so far.
        tokenizer: its tokenizer.
        lessons: what to learn from.
        recipe: steps, batch, rates.
        seed: order of scenes and choice of questions.
        report: called after each step with its figures.
    """
    rng = np.random.default_rng(seed)
    roles = _list_roles(lessons.scenes)
    targets = build_dense_targets(lessons.scenes, lessons.vocabularies, roles)
    heads = DenseHeads([find_word_ids(tokenizer, names) for names in lessons.vocabularies], len(roles))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: compute_lr_factor(step, recipe.warmup_steps, recipe.num_steps)
    )
    order = _iterate_forever(len(lessons.scenes), recipe.num_scenes_per_step, rng)
    model.train()
    for step in range(recipe.num_steps):
        rows = next(order)
        examples = [
            _write_example(lessons.scenes[row], lessons.ask, rng, recipe.full_share)
            for row in rows
            for _ in range(recipe.num_questions_per_scene)
        ]
        asked = torch.stack([_cover(example.asked) for example in examples]).flatten(1).float()
        with torch.autocast("cpu", torch.bfloat16):
            passed = _run_model(model, tokenizer, normalise(lessons.pixels_N[rows]), examples)
            words_VH = model.get_input_embeddings().weight
            dense_loss = heads(passed.vision_BPH, passed.shown_BPH, words_VH, targets.pick(torch.from_numpy(rows)))
            match_loss = heads.compute_match_loss(passed.patches_NPH, asked)
        loss = passed.answer_loss + recipe.dense_weight * (dense_loss + match_loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report(
            step,
            {
                "answer_loss": passed.answer_loss.item(),
                "dense_loss": dense_loss.item(),
                "match_loss": match_loss.item(),
            },
        )
    model.eval()


@torch.inference_mode()
def measure_grounding(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    lessons: Lessons,
    seed: int,
) -> dict[str, float]:
    """Return the share of boxes with IoU above 0.5, over all references and by kind of reference.

    The decision is forced to REGION, since the base model decides at random.
    """
    rng = np.random.default_rng(seed)
    hits: dict[str, list[float]] = {}
    head = tokenizer.convert_tokens_to_ids("<tool_call>")
    for start in range(0, len(lessons.scenes), 64):
        batch = lessons.scenes[start : start + 64]
        picked = [scene.pick_reference(rng) for scene in batch]
        texts = [_write_prompt(lessons.ask(reference.phrase, rng)) + "<tool_call>" for reference in picked]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        pixel_values = normalise(lessons.pixels_N[start : start + 64])
        output = model.generate(**encoded, pixel_values=pixel_values, max_new_tokens=8, do_sample=False)
        for scene, reference, row in zip(batch, picked, output, strict=True):
            generated = row[encoded["input_ids"].shape[1] :].tolist()
            decision = parse_completion(tokenizer.decode([head, *generated], skip_special_tokens=True), FRAME)
            hit = isinstance(decision, Crop) and compute_iou(decision.box, scene.things[reference.thing].box) > 0.5
            hits.setdefault(reference.kind, []).append(float(hit))
    shares = {kind: float(np.mean(values)) for kind, values in sorted(hits.items())}
    return {"all": float(np.mean([value for values in hits.values() for value in values])), **shares}


@dataclass(frozen=True)
class _Example:
    prompt: str
    answer: str
    asked: Box


@dataclass(frozen=True)
class _Pass:
    """What one forward pass gives: the mean answer loss and states of the patches.

    Attributes:
        answer_loss: a scalar.
        vision_BPH: states of the vision tower.
        shown_BPH: the same after the projector, as the decoder gets them.
        patches_NPH: the decoder's states at the patches, before its last layer, one row per question.
    """

    answer_loss: torch.Tensor
    vision_BPH: torch.Tensor
    shown_BPH: torch.Tensor
    patches_NPH: torch.Tensor


def _run_model(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pixel_values_B: torch.Tensor,
    examples_N: Sequence[_Example],
) -> _Pass:
    """Run the model as its own forward does, but each picture passes the vision tower once for all its questions."""
    vision = model.model.vision_tower(pixel_values_B).last_hidden_state[:, 1:]
    projected = model.model.multi_modal_projector(vision)
    prompts = tokenizer([example.prompt for example in examples_N], add_special_tokens=False)["input_ids"]
    answers = tokenizer([example.answer for example in examples_N], add_special_tokens=False)["input_ids"]
    start = max(len(prompt) for prompt in prompts)
    width = start + max(len(answer) for answer in answers)
    ids = torch.full((len(examples_N), width), int(tokenizer.pad_token_id))
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    # Prompts end where the block of answers begins, so that the loss needs that block alone.
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, start - len(prompt) : start] = torch.tensor(prompt)
        ids[row, start : start + len(answer)] = torch.tensor(answer)
        labels[row, start : start + len(answer)] = torch.tensor(answer)
        mask[row, start - len(prompt) : start + len(answer)] = 1
    embeds = model.get_input_embeddings()(ids)
    is_image = ids == model.config.image_token_id
    repeats = len(examples_N) // len(pixel_values_B)
    embeds = embeds.masked_scatter(is_image.unsqueeze(-1), projected.repeat_interleave(repeats, 0).to(embeds.dtype))
    output = model.model.language_model(inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True)
    logits = model.lm_head(output.last_hidden_state[:, start - 1 : -1]).float()
    answer_loss = F.cross_entropy(logits.flatten(0, 1), labels[:, start:].flatten(), ignore_index=-100)
    patches = output.hidden_states[-2][is_image].view(len(examples_N), NUM_PATCHES, HIDDEN_SIZE)
    return _Pass(answer_loss, vision, projected, patches)


def _write_prompt(question: str) -> str:
    return USER + question + IMAGE * NUM_PATCHES + ASSISTANT


def _write_example(scene: TrainingScene, ask: Ask, rng: np.random.Generator, full_share: float) -> _Example:
    reference = scene.pick_reference(rng)
    box = scene.things[reference.thing].box
    decision = KeepFull() if rng.random() < full_share else Crop(box)
    return _Example(_write_prompt(ask(reference.phrase, rng)), format_decision(decision, FRAME) + END, box)


def _list_roles(scenes: Sequence[TrainingScene]) -> list[str]:
    """Return the parts that a thing can play without being named: where it lies, how large it is."""
    return sorted({r.phrase for scene in scenes for r in scene.references if r.kind in ("place", "size")})


def _cover(box: Box) -> torch.Tensor:
    """Return which patches (rows, columns) have their centre inside the box."""
    x0, y0, x1, y1 = box.as_tuple()
    centres = (torch.arange(_GRID) + 0.5) / _GRID
    return ((centres >= y0) & (centres < y1))[:, None] & ((centres >= x0) & (centres < x1))[None, :]


def _iterate_forever(count: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
