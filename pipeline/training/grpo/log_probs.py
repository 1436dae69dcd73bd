"""Log probabilities of completions: each prompt run once (`shared_prompts.py`), openings left to the decision's loss.

Shapes: B rows of this process, T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from pipeline.policy.decoding.shared_prompts import can_share_prompts, compute_completion_logps, select_pictures
from pipeline.training.dropout import without_dropout
from pipeline.training.grpo.resume import ResumableTrainer

Untyped = Any
"""A model of transformers, or what it returns."""


class SharedPromptTrainer(ResumableTrainer):
    """TRL's trainer with log probabilities read behind shared prompts, and with a KL of box tokens alone.

    Batches may hold `opening_mask`, (B, T): tokens that TRL's estimate of the KL leaves out.
    """

    def _compute_loss(self, model: Untyped, inputs: dict[str, Any]) -> torch.Tensor:
        self._loss_inputs = inputs
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: Untyped,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **pictures: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Return log probabilities and entropies of completions, (B, T); no family here mixes experts.

        What is read without gradients (p(opening), the reference, the policy that drew) is read without dropout.
        """
        learns = torch.is_grad_enabled()
        with nullcontext() if learns else without_dropout(model), self.accelerator.autocast():
            if can_share_prompts(model):
                logps, entropies = _read_in_passes(
                    model, input_ids, attention_mask, logits_to_keep, pictures, batch_size, compute_entropy
                )
            else:
                logps, entropies, _ = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **pictures
                )
        if learns:
            self._leave_openings_to_the_decision(logps.detach())
        return logps, entropies, None

    def _leave_openings_to_the_decision(self, logps_BT: torch.Tensor) -> None:
        """Take the openings out of TRL's estimate of the KL.

        That estimate assumes tokens drawn from the policy. Openings are forced, so through it their KL would be
        unbounded as p falls, and would grow with the number of forced rows. Where policy and reference say the same
        it has neither value nor gradient; the exact KL is part of the decision's loss.
        """
        opening_BT = self._loss_inputs.get("opening_mask")
        if opening_BT is not None and "ref_per_token_logps" in self._loss_inputs:
            reference_BT = self._loss_inputs["ref_per_token_logps"]
            self._loss_inputs["ref_per_token_logps"] = torch.where(opening_BT, logps_BT, reference_BT)


def _read_in_passes(
    model: Untyped,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    num_tokens: int,
    pictures: Mapping[str, Any],
    batch_size: int | None,
    compute_entropy: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return log probabilities and, if asked for, entropies, (B, T) each, in passes of at most `batch_size` rows."""
    outputs = [
        compute_completion_logps(
            model,
            input_ids[rows],
            attention_mask[rows],
            num_tokens,
            select_pictures(pictures, rows, input_ids.shape[1]),
        )
        for rows in _cut(len(input_ids), batch_size)
    ]
    logps = torch.cat([output.log_probs for output in outputs])
    return logps, torch.cat([output.entropy for output in outputs]) if compute_entropy else None


def _cut(num_rows: int, batch_size: int | None) -> list[list[int]]:
    """Return the rows of each pass, at most `batch_size` of them."""
    size = batch_size or num_rows
    return [list(range(start, min(start + size, num_rows))) for start in range(0, num_rows, size)]
