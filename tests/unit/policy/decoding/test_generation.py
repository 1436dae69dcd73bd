"""One way to generate: nothing of a checkpoint's generation_config reaches trainer, inference or vLLM."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList

from pipeline.config import LoraParams, PolicyParams, RewardParams, TrainParams
from pipeline.policy import vllm_engine
from pipeline.policy.decoding.generation import (
    AnswerTokens,
    GenerationSettings,
    find_answer_tokens,
    forget_generation_config,
)
from pipeline.policy.policy import Policy, PolicyAnswer, load_policy
from pipeline.training.grpo.train import train_rgrpo
from pipeline.training.seeding import seed_everything
from pipeline.types import Rollout
from tests.conftest import TaughtLlava
from tests.tiny_models import PlantedScorer, build_outcome

_LENGTH: Final = 12
_OPINIONS: Final[dict[str, Any]] = {
    "do_sample": True,
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 1,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "typical_p": 0.1,
    "temperature": 0.01,
    "min_new_tokens": 9,
    "max_new_tokens": 2,
    "num_beams": 1,
    "renormalize_logits": True,
}
"""What a published checkpoint may hold, most of it as strong as it can be."""


@pytest.fixture(scope="module")
def folders(spoken_llava: TaughtLlava, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One policy, as it is and with a generation_config.json that is full of opinions."""
    plain, loud = (tmp_path_factory.mktemp(name) for name in ("plain", "loud"))
    policy = load_policy(spoken_llava.folder, _params())
    for folder in (plain, loud):
        policy.save(folder)
    banned = [policy.region_ids[0], policy.full_ids[0]]
    opinions = _OPINIONS | {
        "suppress_tokens": banned,
        "begin_suppress_tokens": banned,
        "bad_words_ids": [[token] for token in banned],
        "forced_eos_token_id": 1,
        "sequence_bias": [[[policy.full_ids[0]], 50.0]],
        "bos_token_id": 3,
    }
    path = loud / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | opinions))
    return plain, loud


def _params(lora: LoraParams | None = None) -> PolicyParams:
    return PolicyParams(max_new_tokens=_LENGTH, device="cpu", lora=lora)


def _answer(policy: Policy, taught: TaughtLlava, *, sample: bool) -> list[Any]:
    images = [taught.load_image(query_id) for query_id in taught.questions]
    questions = list(taught.questions.values())
    if sample:
        return policy.sample_regions(images, questions, num_samples=3, seeds=range(len(images)))
    return policy.decide(images, questions)


def _train(policy: Policy, taught: TaughtLlava, folder: Path, **changes: object) -> list[Rollout]:
    settings: dict[str, object] = {"max_steps": 1, "queries_per_step": 2, "group_size": 4, "save_steps": 1000}
    outcome = build_outcome(2)
    scorer = PlantedScorer(taught.questions, baseline=outcome, score_box=lambda _, __: outcome)
    seed_everything(3)
    record = train_rgrpo(
        policy,
        taught.questions,
        scorer,  # type: ignore[arg-type]
        TrainParams.model_validate(settings | {"num_region": 1, "num_full": 1} | changes),
        RewardParams(),
        seed=3,
        log=lambda *_: None,
        checkpoints_dir=folder,
    )
    return list(record.rollouts)


# -- the settings -------------------------------------------------------------------------------------------------

_TOKENS: Final = AnswerTokens(end_ids=(1, 4), pad_id=0, picture_id=2)


def test_greedy_and_sampling_differ_in_nothing_but_the_draw() -> None:
    greedy = GenerationSettings.greedy(_LENGTH, _TOKENS)
    sampling = GenerationSettings.sampling(_LENGTH, 1.0, _TOKENS)
    assert greedy != sampling
    names = [name for name in GenerationSettings.__slots__ if getattr(greedy, name) != getattr(sampling, name)]
    assert names == ["do_sample"]


def test_settings_are_frozen_and_narrow_nothing() -> None:
    settings = GenerationSettings.sampling(_LENGTH, 0.7, _TOKENS)
    with pytest.raises(AttributeError):
        settings.top_k = 50  # type: ignore[misc]
    with pytest.raises(TypeError):
        GenerationSettings(_LENGTH, True, 0.7, _TOKENS, top_k=50)  # type: ignore[call-arg]
    assert (settings.top_k, settings.top_p, settings.repetition_penalty, settings.no_repeat_ngram_size) == (0, 1, 1, 0)


def test_greedy_settings_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    GenerationSettings.greedy(_LENGTH, _TOKENS).build_config()
    assert not caplog.records


@pytest.mark.parametrize(("declared", "wanted"), [(None, (9,)), (4, (9, 4)), ([4, 9], (4, 9)), (9, (9,))])
def test_end_tokens_are_the_tokenizers_and_those_that_the_model_declares(
    declared: int | list[int] | None, wanted: tuple[int, ...]
) -> None:
    tokenizer = type("Tokenizer", (), {"eos_token_id": 9, "pad_token_id": 0})
    model: Any = type("Model", (), {})()
    model.config = type("Config", (), {"image_token_id": 2})
    model.generation_config = GenerationConfig(eos_token_id=declared, **_OPINIONS)
    assert find_answer_tokens(model, tokenizer) == AnswerTokens(wanted, 0, 2)
    forget_generation_config(model, tokenizer)
    assert find_answer_tokens(model, tokenizer) == AnswerTokens(wanted, 0, 2)
    assert model.generation_config == GenerationConfig(eos_token_id=list(wanted), pad_token_id=0)


# -- a checkpoint's opinions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_a_checkpoints_generation_config_changes_no_answer(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], sample: bool
) -> None:
    plain, loud = (_answer(load_policy(folder, _params()), spoken_llava, sample=sample) for folder in folders)
    assert plain == loud


def test_an_adapters_base_may_have_opinions_too(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found: list[list[PolicyAnswer]] = []
    for number, base in enumerate(folders):
        params = _params(LoraParams(rank=2)).model_copy(update={"path": str(base)})
        policy = load_policy(base, params)
        policy.prepare_training()
        policy.save(tmp_path / str(number))
        found.append(_answer(load_policy(tmp_path / str(number), params), spoken_llava, sample=True))
    assert found[0] == found[1]


@pytest.mark.parametrize("changes", [{}, {"num_region": 0, "num_full": 0, "factorised": False}], ids=["ours", "stock"])
def test_a_checkpoints_generation_config_changes_no_rollout(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, object]
) -> None:
    plain, loud = (
        _train(load_policy(folder, _params()), spoken_llava, tmp_path / folder.name, **changes) for folder in folders
    )
    assert plain == loud


def test_a_saved_policy_holds_no_opinions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    load_policy(folders[1], _params()).save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved.keys() == {"eos_token_id", "pad_token_id", "transformers_version"}


# -- the three are equal ------------------------------------------------------------------------------------------


@contextmanager
def _effective_configs() -> Iterator[list[GenerationConfig]]:
    """Yield the configurations that `generate` ends up with, whatever it was given and whatever it filled in."""
    found: list[GenerationConfig] = []
    original = GenerationMixin._prepare_generation_config

    def prepare(*arguments: Any, **keywords: Any) -> Any:
        config, rest = original(*arguments, **keywords)
        found.append(config)
        return config, rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerationMixin, "_prepare_generation_config", prepare)
        yield found


_PLACES: Final = {"num_return_sequences", "max_length", "_from_model_config", "transformers_version"}
"""How many rows there are and how long the prompt is; no settings."""


def _read(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _PLACES}


def test_trainer_and_inference_generate_alike_field_by_field(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    policy = load_policy(folders[1], _params())
    with _effective_configs() as of_inference:
        _answer(policy, spoken_llava, sample=True)
    with _effective_configs() as of_trainer:
        _train(policy, spoken_llava, tmp_path, temperature=1.0)
    assert of_inference
    assert of_trainer
    wanted = _read(GenerationSettings.sampling(_LENGTH, 1.0, policy.tokens).build_config())
    for config in (*of_inference, *of_trainer):
        found = _read(config)
        assert found == _read(of_inference[0])
        assert {name: found[name] for name, value in wanted.items() if value is not None} == {
            name: value for name, value in wanted.items() if value is not None
        }


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_vllm_is_told_the_same_field_by_field(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sample: bool
) -> None:
    policy = load_policy(folders[1], _params())
    with _effective_configs() as configs:
        _answer(policy, spoken_llava, sample=sample)
    seen: list[dict[str, Any]] = []
    asked = _build_vllm_policy(policy, seen, monkeypatch)
    _answer(asked, spoken_llava, sample=sample)
    forced = len(policy.region_ids) if sample else 0
    for config in configs:
        for sampling in seen:
            assert sampling["max_tokens"] + forced == config.max_new_tokens
            assert (sampling["temperature"] > 0) == config.do_sample == sample
            if sample:
                assert sampling["temperature"] == config.temperature
                assert (sampling["top_k"], sampling["top_p"]) == (config.top_k, config.top_p)
            assert sampling["repetition_penalty"] == config.repetition_penalty
            assert config.no_repeat_ngram_size == 0  # vLLM has no such setting
            assert sampling["stop_token_ids"] == config.eos_token_id
            assert list(sampling["logit_bias"]) == config.suppress_tokens
            assert not {"bad_words", "min_tokens", "min_p"} & sampling.keys()


def _build_vllm_policy(policy: Policy, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a policy on a vLLM that notes what it is told and says nothing."""
    asked = vllm_engine.VllmPolicy.__new__(vllm_engine.VllmPolicy)
    output = type("Output", (), {"text": ""})

    def note(**keywords: Any) -> dict[str, Any]:
        seen.append(keywords)
        return keywords

    def generate(_self: object, prompts: list[Any], samplings: list[dict[str, Any]], **_: object) -> list[Any]:
        return [type("Row", (), {"outputs": [output] * sampling["n"]}) for sampling in samplings]

    asked._llm = type("Llm", (), {"generate": generate})()
    asked._sampling_class = note
    asked._params, asked._processor, asked._get_frame = policy.params, policy.processor, policy.get_frame
    asked._view_shape = policy.view_shape
    asked._region_ids, asked._tokens = policy.region_ids, policy.tokens
    asked._conversation = policy.conversation
    monkeypatch.setattr(asked, "_read_p_region", lambda images, _: [0.5] * len(images))
    return asked


# -- what is kept of the logits -----------------------------------------------------------------------------------


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Counts, at each step, how many earlier steps' scores are still alive."""

    def __init__(self) -> None:
        self.num_alive: list[int] = []
        self._seen: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.num_alive.append(sum(seen() is not None for seen in self._seen))
        self._seen.append(weakref.ref(scores))
        return scores


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_logits_of_no_step_are_kept(
    spoken_llava: TaughtLlava, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sample: bool
) -> None:
    policy, watch = load_policy(folders[0], _params()), _Watch()
    generate = policy.model.generate

    def watched(**keywords: Any) -> Any:
        keywords["logits_processor"] = LogitsProcessorList([*keywords["logits_processor"], watch])
        return generate(**keywords)

    monkeypatch.setattr(policy.model, "generate", watched)
    with _effective_configs() as configs:
        _answer(policy, spoken_llava, sample=sample)
    assert len(watch.num_alive) > 4
    assert max(watch.num_alive) <= 1  # the step before may not have been let go of yet
    assert not any(config.output_logits or config.output_scores for config in configs)


def test_image_placeholder_is_never_generated(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(folders[0], _params())
    head = policy.model.get_output_embeddings()
    picture_id = policy.tokens.picture_id

    def prefer(_module: object, _arguments: object, logits: torch.Tensor) -> torch.Tensor:
        logits[..., picture_id] = 1e3
        return logits

    handle = head.register_forward_hook(prefer)
    generated: list[torch.Tensor] = []
    generate = policy.model.generate

    def listen(**keywords: Any) -> torch.Tensor:
        sequences: torch.Tensor = generate(**keywords)
        generated.append(sequences[:, keywords["input_ids"].shape[1] :])
        return sequences

    monkeypatch.setattr(policy.model, "generate", listen)
    policy.decide([Image.new("RGB", (40, 30))], ["What?"])
    handle.remove()
    assert generated[0].numel()
    assert not (generated[0] == picture_id).any()
