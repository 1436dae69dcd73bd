"""The tiny scorer of the demo: a CLIP of one million parameters, untrained, and its processor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.recipes.scorer_design import ContrastRecipe, ScorerDesign

IMAGE_SIZE_PX: Final = 96
PATCH_SIZE_PX: Final = 12
DIM: Final = 128
MAX_TOKENS: Final = 128
_PAD, _START, _END = "<|pad|>", "<|start|>", "<|end|>"


def build_processor(texts: Iterable[str]) -> CLIPProcessor:
    """Train the tokenizer on articles and return the processor: pictures are squashed, never cropped."""
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor, build_tokenizer(texts, max_tokens=MAX_TOKENS))


def build_tokenizer(
    texts: Iterable[str], *, max_tokens: int, model_input_names: Sequence[str] = ("input_ids", "attention_mask")
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of whole words on articles.

    Args:
        texts: the articles.
        max_tokens: longer texts are cut.
        model_input_names: what it returns of a text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+|[^A-Za-z\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [_PAD, _START, _END]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=1200,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=special,
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (_START, _END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_START,
        eos_token=_END,
        pad_token=_PAD,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
        model_input_names=list(model_input_names),
    )


def build_model(processor: CLIPProcessor) -> CLIPModel:
    """Return the untrained model; seed torch first."""
    tokenizer = processor.tokenizer
    return CLIPModel(
        CLIPConfig(
            text_config={
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "projection_dim": DIM,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": MAX_TOKENS,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "projection_dim": DIM,
                "image_size": IMAGE_SIZE_PX,
                "patch_size": PATCH_SIZE_PX,
            },
            projection_dim=DIM,
        )
    )


def compute_loss(model: CLIPModel, a_BD: torch.Tensor, b_BD: torch.Tensor) -> torch.Tensor:
    """Return InfoNCE: each row must find its partner among the batch's, in both directions."""
    logits_BB = model.logit_scale.exp() * a_BD @ b_BD.T
    same_B = torch.arange(len(a_BD))
    return 0.5 * (F.cross_entropy(logits_BB, same_B) + F.cross_entropy(logits_BB.T, same_B))


DESIGN: Final = ScorerDesign(
    name="tiny-clip",
    summary="A CLIP",
    image_size_px=IMAGE_SIZE_PX,
    dim=DIM,
    text_padding=True,
    rounds=(
        ContrastRecipe(),
        ContrastRecipe(num_scenes=6_000, num_steps=600, scene_share=0.15, learning_rate=1e-3),
    ),
    build_processor=build_processor,
    build_model=build_model,
    compute_loss=compute_loss,
)
