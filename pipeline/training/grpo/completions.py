"""What one sampled row says and earns: read once, then handed to the reward, the advantages and the rollouts.

Shapes: B rows of this process, T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch

from pipeline.core.reward import Reward
from pipeline.training.grpo.groups import Arm
from pipeline.types import Crop, Decision, KeepFull, Rollout

_NAMES: Final[dict[type[Decision], Literal["region", "full"]]] = {Crop: "region", KeepFull: "full"}


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled row.

    Attributes:
        query_id: what it answers.
        token_ids: what was generated, a forced opening among it, without padding.
        text: what the tokens say, up to the end of the action.
        opening_code: REGION or FULL as the text opens, MALFORMED for neither.
        num_opening_tokens: how many tokens say so, at least 1.
        decision: what the text states about the query's picture.
        reward: what the decision earns.
    """

    query_id: str
    token_ids: Sequence[int]
    text: str
    opening_code: int
    num_opening_tokens: int
    decision: Decision
    reward: Reward

    def build_rollout(self, step: int, arm: Arm) -> Rollout:
        """Return what is kept of the row.

        Args:
            step: the step that learns from it, from 1.
            arm: how it was made to open.
        """
        return Rollout(
            step=step,
            query_id=self.query_id,
            arm=arm,
            completion=self.text,
            decision=_NAMES.get(type(self.decision), "malformed"),
            box=self.decision.box if isinstance(self.decision, Crop) else None,
            reward=float(np.float32(self.reward.total)),  # as the trainer holds it and learns from it
        )


def mask_openings(completions: Sequence[Completion], completion_ids_BT: torch.Tensor) -> torch.Tensor:
    """Return which tokens say how a row opens, (B, T), on the device of the padded completions."""
    device = completion_ids_BT.device
    lengths_B = torch.tensor([completion.num_opening_tokens for completion in completions], device=device)
    positions_T = torch.arange(completion_ids_BT.shape[1], device=device)
    return positions_T[None] < lengths_B[:, None]
