"""Rows of balanced groups: each opens as planned, and drawing from shared prompts changes no answer, in any family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from pipeline.config import LoraParams, PolicyParams
from pipeline.core.completion import FULL_ANSWER
from pipeline.policy.decoding.action_end import ActionEnd
from pipeline.policy.decoding.generation import GenerationSettings
from pipeline.policy.decoding.openings import ForcedOpenings
from pipeline.policy.policy import Policy, load_policy
from pipeline.training.group_sampling import sample_rows
from pipeline.training.seeding import seed_everything
from tests.scripted import scripted
from tests.tiny_families import BUILDERS, build_tiny_policy

_LENGTH: Final = 24
_GROUP: Final = 4
_ASKED: Final = ((0, "What is the red thing?"), (1, "What?"), (0, "What is at the left?"))
"""Number of the picture, and question: of other lengths, and twice about one picture."""


def _build(family: str, folder: Path, lora: LoraParams | None = None) -> Policy:
    base = build_tiny_policy(family, folder)
    policy = load_policy(base, PolicyParams(path=str(base), device="cpu", max_new_tokens=_LENGTH, lora=lora))
    if lora is not None:
        policy.prepare_training()
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:  # zero at first: an adapter that does nothing would prove nothing
                torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(2))
    policy.model.eval()
    return policy


@pytest.fixture(scope="module", params=[*BUILDERS, "llava, LoRA", "qwen2_5_vl, LoRA"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    family, *adapted = request.param.split(", ")
    folder = tmp_path_factory.mktemp(family)
    return _build(family, folder, LoraParams(rank=2, dropout=0.0) if adapted else None)


def _ask(policy: Policy) -> dict[str, Any]:
    """Return what TRL gives `generate`: each question `_GROUP` times, padded on the left."""
    asked = [_ASKED[row // _GROUP] for row in range(_GROUP * len(_ASKED))]
    prompts = [policy.conversation.write_prompt(question) for _, question in asked]
    images = [[_draw_picture(number)] for number, _ in asked]
    return dict(policy.processor(text=prompts, images=images, padding=True, return_tensors="pt"))


def _draw_picture(number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, size=(6, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((70, 56))


def _plan(policy: Policy) -> list[list[int]]:
    """Return for each row how it opens: region, full, and two that are free."""
    return [list(policy.region_ids), list(policy.full_ids), [], []] * len(_ASKED)


def _settings(policy: Policy, *, sample: bool) -> Any:
    build = (
        GenerationSettings.sampling(_LENGTH, 1.0, policy.tokens)
        if sample
        else GenerationSettings.greedy(_LENGTH, policy.tokens)
    )
    config = build.build_config()
    config.output_logits = config.return_dict_in_generate = True
    return config


def _generate(policy: Policy, openings: list[list[int]], *, shared: bool, sample: bool = False) -> Any:
    """Return what `generate` says with prompts run once each, or with every row run whole."""
    inputs, config = _ask(policy), _settings(policy, sample=sample)
    tokenizer, length = policy.processor.tokenizer, inputs["input_ids"].shape[1]
    seed_everything(4)
    with torch.no_grad():
        if shared:
            with sample_rows(policy.model, tokenizer, openings):
                return policy.model.generate(**inputs, generation_config=config)
        return policy.model.generate(
            **inputs,
            generation_config=config,
            logits_processor=LogitsProcessorList([ForcedOpenings(openings, length)]),
            stopping_criteria=StoppingCriteriaList([ActionEnd(tokenizer, length, len(openings))]),
        )


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "drawn"])
def test_shared_prompts_change_no_answer(policy: Policy, sample: bool) -> None:
    openings = _plan(policy)
    whole, shared = (_generate(policy, openings, shared=way, sample=sample) for way in (False, True))
    assert torch.equal(shared.sequences, whole.sequences)
    assert len(shared.logits) == len(whole.logits) > max(len(opening) for opening in openings)
    torch.testing.assert_close(torch.stack(shared.logits), torch.stack(whole.logits), atol=1e-4, rtol=1e-4)
    # A wrong picture or a wrong row would show: the groups do not speak alike.
    first = shared.logits[0]
    for row in range(_GROUP, len(openings)):
        assert torch.allclose(first[row], first[row - _GROUP], atol=1e-3) is False


def test_every_row_opens_as_planned_and_free_rows_as_they_like(policy: Policy) -> None:
    openings = _plan(policy)
    output = _generate(policy, openings, shared=True)
    said = output.sequences[:, -len(output.logits) :].tolist()
    allowed = output.logits[0].clone()
    allowed[:, policy.tokens.picture_id] = -torch.inf
    likeliest = allowed.argmax(-1).tolist()
    for row, opening in enumerate(openings):
        assert said[row][: len(opening)] == opening
        if not opening:
            assert said[row][0] == likeliest[row]


def test_a_forced_full_answer_is_over_after_one_more_token(policy: Policy) -> None:
    openings = _plan(policy)
    output = _generate(policy, openings, shared=True)
    said = output.sequences[:, -len(output.logits) :]
    (end,) = (len(policy.full_ids) + 1,)
    assert policy.processor.tokenizer.decode(policy.full_ids).strip() == FULL_ANSWER
    for row in range(1, len(openings), _GROUP):
        assert (said[row, end:] == policy.tokens.pad_id).all()


@contextmanager
def _counted_tokens(policy: Policy) -> Iterator[list[int]]:
    """Yields how many tokens each pass through the language model has embedded."""
    counts: list[int] = []
    handle = policy.model.get_input_embeddings().register_forward_hook(
        lambda _module, arguments, _output: counts.append(arguments[0].numel())
    )
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize("family", list(BUILDERS))
def test_each_prompt_goes_through_the_model_once(family: str, tmp_path: Path) -> None:
    policy = _build(family, tmp_path)
    openings = _plan(policy)
    num_prompt_tokens = _ask(policy)["input_ids"].shape[1]
    with _counted_tokens(policy) as counts:
        num_steps = len(_generate(policy, openings, shared=True).logits)
    assert sum(counts) == len(_ASKED) * (num_prompt_tokens - 1) + len(openings) * num_steps


# -- what is left behind ----------------------------------------------------------------------------------------------


def test_generate_is_the_models_own_again(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    with sample_rows(policy.model, tokenizer, []):
        assert "generate" in vars(policy.model)
    assert "generate" not in vars(policy.model)
    with pytest.raises(RuntimeError, match="in between"), sample_rows(policy.model, tokenizer, []):
        raise RuntimeError("in between")
    assert "generate" not in vars(policy.model)


def test_a_generate_that_was_replaced_before_is_restored(policy: Policy) -> None:
    tokenizer = policy.processor.tokenizer
    with scripted(policy, lambda _: FULL_ANSWER):
        before = policy.model.generate
        with sample_rows(policy.model, tokenizer, []):
            assert policy.model.generate is not before
        assert policy.model.generate is before
        with pytest.raises(RuntimeError, match="in between"), sample_rows(policy.model, tokenizer, []):
            raise RuntimeError("in between")
        assert policy.model.generate is before
    assert "generate" not in vars(policy.model)


def test_a_failed_draw_leaves_nothing_behind(policy: Policy) -> None:
    inputs = _ask(policy)
    wrong = [[*policy.region_ids]]  # for one row, where there are twelve
    tokenizer = policy.processor.tokenizer
    with pytest.raises(Exception), sample_rows(policy.model, tokenizer, wrong), torch.no_grad():  # noqa: B017
        policy.model.generate(**inputs, generation_config=_settings(policy, sample=False))
    assert "generate" not in vars(policy.model)
    openings = _plan(policy)
    again = [_generate(policy, openings, shared=way).sequences for way in (True, False)]
    assert torch.equal(*again)
