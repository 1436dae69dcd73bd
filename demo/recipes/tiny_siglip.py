"""The second tiny scorer of the demo: a SigLIP of one million parameters, untrained, and its processor.

It differs from tiny-clip wherever a family may: no class token but a pooling head that attends to the patches, other
width, depth, patch and input size, texts padded to full length, and a loss that judges every pair by itself. It shares
only the words that its tokenizer is taught.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
import torch.nn.functional as F
from transformers import SiglipConfig, SiglipModel, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from demo.recipes.scorer_design import ContrastRecipe, ScorerDesign
from demo.recipes.tiny_clip import build_tokenizer

IMAGE_SIZE_PX: Final = 98
PATCH_SIZE_PX: Final = 14
DIM: Final = 112
MAX_TOKENS: Final = 80
_NUM_GROUPS: Final = 12
_GROUP_SIZE: Final = 6
# Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2: the bias starts where most pairs of a
# batch are taken for mismatches. Theirs is -10, for batches of thousands; here it is the log odds of a batch of 72.
_FIRST_SCALE: Final = math.log(10.0)
_FIRST_BIAS: Final = -math.log(_NUM_GROUPS * _GROUP_SIZE - 1)


def build_processor(texts: Iterable[str]) -> SiglipProcessor:
    """Train the tokenizer on articles and return the processor: pictures are squashed, no padding is masked."""
    tokenizer = build_tokenizer(texts, max_tokens=MAX_TOKENS, model_input_names=["input_ids"])
    image_processor = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return SiglipProcessor(image_processor, tokenizer)


def build_model(processor: SiglipProcessor) -> SiglipModel:
    """Return the untrained model; seed torch first."""
    tokenizer = processor.tokenizer
    model = SiglipModel(
        SiglipConfig(
            text_config={
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "projection_size": DIM,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": MAX_TOKENS,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={
                "hidden_size": DIM,
                "intermediate_size": 336,
                "num_hidden_layers": 5,
                "num_attention_heads": 4,
                "image_size": IMAGE_SIZE_PX,
                "patch_size": PATCH_SIZE_PX,
            },
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(_FIRST_SCALE)
        model.logit_bias.fill_(_FIRST_BIAS)
    return model


def compute_loss(model: SiglipModel, a_BD: torch.Tensor, b_BD: torch.Tensor) -> torch.Tensor:
    """Return the sigmoid pair loss: each of the B x B pairs matches or does not (Zhai et al. 2023, equation 1)."""
    logits_BB = model.logit_scale.exp() * a_BD @ b_BD.T + model.logit_bias
    signs_BB = 2 * torch.eye(len(a_BD)) - 1
    return -F.logsigmoid(signs_BB * logits_BB).sum() / len(a_BD)


DESIGN: Final = ScorerDesign(
    name="tiny-siglip",
    summary="A SigLIP (pooling head, sigmoid loss)",
    image_size_px=IMAGE_SIZE_PX,
    dim=DIM,
    text_padding="max_length",
    rounds=(
        ContrastRecipe(num_scenes=7_000, num_steps=800, num_groups=_NUM_GROUPS, group_size=_GROUP_SIZE),
        ContrastRecipe(
            num_scenes=3_000,
            num_steps=350,
            scene_share=0.15,
            num_groups=_NUM_GROUPS,
            group_size=_GROUP_SIZE,
            learning_rate=1e-3,
        ),
    ),
    build_processor=build_processor,
    build_model=build_model,
    compute_loss=compute_loss,
)
"""Fewer scenes, fewer steps and smaller batches than tiny-clip's: this one is made in a quarter of its work."""
