"""The tiny vision-language model of the demo: a LLaVA (CLIP tower, Qwen2 decoder) of two million parameters, untrained.

Departures from a LLaVA of ordinary size, all for the sake of two CPU cores:
- The chat template puts the question before the picture, so that a causal decoder reads the patches knowing
  what to look for.
- The fixed parts of the answer's tool call are one token each, a coordinate and its comma are one token: a whole
  decision takes at most eight decoding steps.
- Boxes are written in a frame of 28 x 28 units, whatever the picture's size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

FRAME_UNITS: Final = 28
IMAGE_SIZE_PX: Final = 112
PATCH_SIZE_PX: Final = 14
NUM_PATCHES: Final = (IMAGE_SIZE_PX // PATCH_SIZE_PX) ** 2
HIDDEN_SIZE: Final = 128

END, PAD, IMAGE, USER, ASSISTANT = "<|end|>", "<|pad|>", "<image>", "<|user|>", "<|assistant|>"
_CALL_HEAD: Final = '\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": ['
_CALL_TAIL: Final = "]}}\n</tool_call>"
_CHAT_TEMPLATE: Final = (
    "{%- for message in messages %}"
    "{{- '<|user|>' if message['role'] == 'user' else '<|assistant|>' if message['role'] == 'assistant' else '' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] }}{%- endfor %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}{{- '<image>' }}{%- endfor %}"
    "{%- endif %}"
    "{{- '<|end|>' if message['role'] == 'assistant' else '' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the world's language; any other text still encodes, in more tokens.

    Args:
        texts: questions and articles of studio worlds.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d+(?:, )?| ?[A-Za-z]+|[^A-Za-z\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    coordinates = [f"{unit}, {unit}\n" for unit in range(FRAME_UNITS + 1)] * 1000
    tokenizer.train_from_iterator(
        [*coordinates, *texts],
        trainers.BpeTrainer(
            vocab_size=900,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[PAD, END, IMAGE, USER, ASSISTANT],
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    texts = ("<tool_call>", "NO_CROP_NEEDED", _CALL_HEAD, _CALL_TAIL)
    fast.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts])
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def find_word_ids(tokenizer: PreTrainedTokenizerFast, names: Iterable[str]) -> list[list[int]]:
    """Return the tokens of each name as it stands inside a sentence; one a word where the tokenizer has learned it."""
    return [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor: pictures are squashed to the square input, never cropped."""
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=_CHAT_TEMPLATE,
        patch_size=PATCH_SIZE_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Return the untrained model; seed torch first."""
    end_id, pad_id = tokenizer.convert_tokens_to_ids([END, PAD])
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=HIDDEN_SIZE,
                intermediate_size=4 * HIDDEN_SIZE,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=IMAGE_SIZE_PX,
                patch_size=PATCH_SIZE_PX,
            ),
            text_config=Qwen2Config(
                vocab_size=-(-len(tokenizer) // 8) * 8,
                hidden_size=HIDDEN_SIZE,
                intermediate_size=3 * HIDDEN_SIZE,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=1024,
                bos_token_id=pad_id,
                eos_token_id=end_id,
                pad_token_id=pad_id,
                tie_word_embeddings=True,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=NUM_PATCHES,
            tie_word_embeddings=True,
            region_frame_units=FRAME_UNITS,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=end_id, pad_token_id=pad_id)
    return model
