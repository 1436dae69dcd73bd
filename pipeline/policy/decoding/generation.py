"""How answers are generated: one set of settings for the trainer, for inference and for vLLM (docs/method.md, D60).

A published checkpoint brings a generation_config.json of its own (Qwen2.5-VL's: repetition penalty 1.05, temperature
1e-6 and others), and transformers fills every setting that a caller left open from it. r-GRPO needs draws from the very
distribution whose log probabilities it takes, and a policy must answer after training as it did within: so only what
that file says of the vocabulary is kept, the tokens that end an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from transformers import GenerationConfig

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

DRAWING_TEMPERATURE: Final = 1.0
"""Temperature of answers that are drawn at inference: the policy's own distribution."""

_NEVER: Final = -100.0
"""The lowest bias that vLLM puts on a token's logit; transformers sets minus infinity."""


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """What a checkpoint says of its vocabulary, and no setting may change.

    Attributes:
        end_ids: tokens that end an answer.
        pad_id: fills rows that ended before others.
        picture_id: stands for a picture in the prompt. Generated, it would ask for features that no picture gave.
    """

    end_ids: tuple[int, ...]
    pad_id: int
    picture_id: int


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How one call generates. Built by `greedy` or `sampling`; what has a default here is the same in both.

    Attributes:
        max_new_tokens: longest answer, forced opening included.
        do_sample: draw each token; else take the likeliest.
        temperature: logits are divided by it before a token is drawn; above 0.
        tokens: ends, padding, what is never generated.
        top_k: likeliest tokens that are drawn from; 0 is all of them.
        top_p: their mass; 1 is all of it.
        repetition_penalty: 1 is none. A box repeats digits, and a penalty would move it.
        no_repeat_ngram_size: 0 lets any sequence return.
    """

    max_new_tokens: int
    do_sample: bool
    temperature: float
    tokens: AnswerTokens
    top_k: int = field(default=0, init=False)
    top_p: float = field(default=1.0, init=False)
    repetition_penalty: float = field(default=1.0, init=False)
    no_repeat_ngram_size: int = field(default=0, init=False)

    @classmethod
    def greedy(cls, max_new_tokens: int, tokens: AnswerTokens) -> GenerationSettings:
        """Return settings that take the likeliest token at each step."""
        return cls(max_new_tokens, do_sample=False, temperature=1.0, tokens=tokens)

    @classmethod
    def sampling(cls, max_new_tokens: int, temperature: float, tokens: AnswerTokens) -> GenerationSettings:
        """Return settings that draw each token from the whole distribution."""
        return cls(max_new_tokens, do_sample=True, temperature=temperature, tokens=tokens)

    def build_config(self) -> GenerationConfig:
        """Return the settings as transformers' `generate` takes them.

        What this leaves open is filled from the model's own configuration, which `forget_generation_config` emptied.
        """
        # Compiled decoding is switched off as in TRL's trainer.
        return GenerationConfig(**self._list_arguments(), disable_compile=True)

    def list_trl_arguments(self) -> dict[str, Any]:
        """Return the settings as arguments of TRL's GRPOConfig.

        `generation_kwargs` has the last word in the configuration that TRL builds for `generate`. Length and
        temperature stand beside it since TRL also computes with them: every forward pass divides logits by the latter.
        """
        return {
            "max_completion_length": self.max_new_tokens,
            "temperature": self.temperature,
            "generation_kwargs": self._list_arguments() | {"bos_token_id": None},
        }

    def list_vllm_arguments(self, num_forced: int) -> dict[str, Any]:
        """Return the settings as arguments of vLLM's SamplingParams, which has no bar on repeated sequences at all.

        Args:
            num_forced: tokens of the answer that the prompt holds already.
        """
        return {
            "max_tokens": max(1, self.max_new_tokens - num_forced),
            "temperature": self.temperature if self.do_sample else 0.0,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
            "stop_token_ids": list(self.tokens.end_ids),
            "logit_bias": {self.tokens.picture_id: _NEVER},
        }

    def _list_arguments(self) -> dict[str, Any]:
        drawing = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            # transformers warns of them where nothing is drawn.
            **(drawing if self.do_sample else {}),
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "suppress_tokens": [self.tokens.picture_id],
            "eos_token_id": list(self.tokens.end_ids),
            "pad_token_id": self.tokens.pad_id,
        }


def forget_generation_config(model: Untyped, tokenizer: Untyped) -> None:
    """Leave of a model's generation_config nothing but the tokens that end and pad an answer.

    Args:
        model: as transformers has loaded it, without an adapter.
        tokenizer: its tokenizer.
    """
    tokens = find_answer_tokens(model, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=list(tokens.end_ids), pad_token_id=tokens.pad_id)


def find_answer_tokens(model: Untyped, tokenizer: Untyped) -> AnswerTokens:
    """Return what model and tokenizer say of the vocabulary.

    An end of turn that only the model declares ends an answer too, as in TRL's trainer.
    """
    declared = model.generation_config.eos_token_id
    listed = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    ends = listed if tokenizer.eos_token_id in listed else [tokenizer.eos_token_id, *listed]
    return AnswerTokens(tuple(ends), tokenizer.pad_token_id, model.config.image_token_id)
