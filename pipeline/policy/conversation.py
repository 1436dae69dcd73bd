"""How a policy is asked: the conversation around a question, as messages and as its chat template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pipeline.config import PolicyParams
from pipeline.core.completion import REGION_CLOSING, REGION_OPENING
from pipeline.core.prompts import build_prompt
from pipeline.models.plain_text import PlainText, list_markers, list_picture_strings

Untyped = Any
"""A class of transformers, whose attributes depend on the model."""

Message = dict[str, Any]


class Conversation:
    """Asks for a decision; the chat template sets the order of picture and text.

    Args:
        processor: of the policy.
        params: prompt style.
    """

    def __init__(self, processor: Untyped, params: PolicyParams) -> None:
        self._processor = processor
        self._style = params.prompt
        # The answer's own brackets are tokens of some vocabularies, though no special ones.
        own = {REGION_OPENING, REGION_CLOSING}
        self.as_plain_text: Final = PlainText(list_markers(processor.tokenizer) | list_picture_strings(processor) | own)

    def build_messages(self, question: str) -> list[Message]:
        """Return the messages that ask one question, in which it can be nothing but text."""
        text = build_prompt(self.as_plain_text(question), self._style)
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]

    def write_prompt(self, question: str) -> str:
        """Return the text up to where the answer begins; the picture is one string, which the processor widens."""
        return self._render(self.build_messages(question), add_generation_prompt=True)

    def encode_opening(self, answer: str, opening: str) -> list[int]:
        """Return the first tokens of an answer, as template and tokenizer write it, up to its opening's end.

        SmolVLM's template sets a space before the answer, and a tokenizer may join the opening's last sign with the
        line break after it: forced rows must begin with the tokens that SFT has taught.
        """
        message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        rendered = self._render([*self.build_messages("?"), message]).removeprefix(self.write_prompt("?"))
        lead = rendered[: rendered.index(answer)]
        tokenizer = self._processor.tokenizer
        ids: list[int] = tokenizer(lead + answer, add_special_tokens=False)["input_ids"]
        lengths = range(1, len(ids) + 1)
        wanted = (lead + opening).strip()
        return ids[: next(length for length in lengths if tokenizer.decode(ids[:length]).strip().startswith(wanted))]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        text: str = self._processor.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        return text
