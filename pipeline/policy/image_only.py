"""Processors without their video half, which alone needs torchvision (and num2words); pictures need neither.

What is no argument of `__init__` is neither loaded nor saved: transformers reads the signature. The classes bear the
names of those they stand for, so that a folder they save names the stock class.
"""

from __future__ import annotations

from typing import Any

from transformers.models.qwen2_5_vl import processing_qwen2_5_vl
from transformers.models.qwen2_vl import processing_qwen2_vl
from transformers.models.qwen3_vl import processing_qwen3_vl
from transformers.models.smolvlm import processing_smolvlm

Part = Any
"""Image processor or tokenizer of transformers."""


class Qwen2VLProcessor(processing_qwen2_vl.Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL's processor for pictures and text."""

    def __init__(self, image_processor: Part, tokenizer: Part, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class Qwen2_5_VLProcessor(processing_qwen2_5_vl.Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's processor for pictures and text."""

    def __init__(self, image_processor: Part, tokenizer: Part, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class Qwen3VLProcessor(processing_qwen3_vl.Qwen3VLProcessor):  # type: ignore[misc]
    """Qwen3-VL's processor for pictures and text."""

    def __init__(self, image_processor: Part, tokenizer: Part, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class SmolVLMProcessor(processing_smolvlm.SmolVLMProcessor):  # type: ignore[misc]
    """SmolVLM's processor for pictures and text; the stock one asks for num2words before it is built."""

    def __init__(
        self, image_processor: Part, tokenizer: Part, image_seq_len: int = 169, chat_template: str | None = None
    ) -> None:
        self.image_seq_len = image_seq_len
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.end_of_utterance_token = getattr(tokenizer, "end_of_utterance_token", "<end_of_utterance>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.video_token = getattr(tokenizer, "video_token", "<video>")
        super(processing_smolvlm.SmolVLMProcessor, self).__init__(
            image_processor, tokenizer, chat_template=chat_template
        )

    def apply_chat_template(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Render a conversation without asking a video processor for frames."""
        return super(processing_smolvlm.SmolVLMProcessor, self).apply_chat_template(*arguments, **keywords)
