"""The trainer of r-GRPO.

Departures from TRL's trainer (docs/method.md gives their numbers and measurements):
- Some rows of every group are made to open with REGION, some with FULL; the rest are left free, so that a policy
  that has collapsed to one decision still sees what the other one earns, and malformed openings are still punished.
- Decision tokens and box tokens carry advantages of their own, (B, T) instead of (B,).
- The decision has an exact loss (`core/decision.py`), for which one short forward pass a query reads p(REGION) and
  p(FULL); TRL's estimate of the KL is left to the box tokens (`log_probs.py`).
- A prompt goes through the model once, not once for each row of its group (`log_probs.py`), and so does a picture
  through the vision tower (`shared_pictures.py`).
- A row ends with its action (`action_end.py`); the trainer would go on until an end token.
- A killed run goes on as if it had not been (`resume.py`).

Shapes: B rows of this process (of all processes' groups where G follows), N rows of all processes, G rows of a group,
T tokens of a completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.config import TrainParams
from pipeline.core.advantage import compute_arm_values
from pipeline.core.decision import DecisionLoss, compute_decision_loss
from pipeline.policy.decoding.action_end import drop_beyond_action, is_complete
from pipeline.policy.decoding.shared_prompts import select_pictures
from pipeline.policy.policy import Policy
from pipeline.training.dropout import without_dropout
from pipeline.training.group_sampling import sample_rows
from pipeline.training.grpo.advantages import (
    FloatArray,
    compute_decision_figures,
    compute_factorised_advantages,
    compute_group_figures,
    compute_plain_advantages,
)
from pipeline.training.grpo.completions import Completion, mask_openings
from pipeline.training.grpo.groups import Arm, GroupPlan, IntArray
from pipeline.training.grpo.log_probs import SharedPromptTrainer
from pipeline.training.grpo.reward import PolicyReward, ranking_reward


class RGRPOTrainer(SharedPromptTrainer):
    """GRPO with decision-balanced groups and factorised advantages.

    Args:
        plan: how each group is made up; no forced rows gives TRL's own sampling.
        params: how advantages are made.
        policy: gives the tokens that open each arm.
        reward: reads completions and says what they earn.
        keywords: those of `ResumableTrainer`.
    """

    def __init__(
        self, *, plan: GroupPlan, params: TrainParams, policy: Policy, reward: PolicyReward, **keywords: Any
    ) -> None:
        super().__init__(reward_funcs=[ranking_reward], processing_class=policy.processor, **keywords)
        self._plan = plan
        self._params = params
        self._openings: dict[Arm, list[int]] = {
            "region": list(policy.region_ids),
            "full": list(policy.full_ids),
            "free": [],
        }
        self._reward = reward

    # -- sampling -----------------------------------------------------------------------------------------------

    def _list_arms(self, num_rows: int) -> list[Arm]:
        """Return how this process's rows are made to open."""
        first = self.accelerator.process_index * num_rows
        return [self._plan.get_arm(first + row) for row in range(num_rows)]

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        *rest: Any,
        **keywords: Any,
    ) -> tuple[list[list[int]], Any]:
        """Draw rows that open as the plan says and end with their actions; the opening is part of the completion."""
        if not self.model.training:
            return super()._generate_single_turn(  # type: ignore[no-any-return]
                prompt_ids, images, multimodal_fields, num_generations, *rest, **keywords
            )
        openings = [self._openings[arm] for arm in self._list_arms(len(prompt_ids))]
        # One generation a prompt: the rows of a group differ, a server must not merge them.
        with sample_rows(self.model, self._tokenizer, openings), without_dropout(self.model):
            generated, _ = super()._generate_single_turn(prompt_ids, images, multimodal_fields, 1, *rest, **keywords)
        completions = [drop_beyond_action(self._tokenizer, tokens, self.eos_token_ids) for tokens in generated]
        return completions, None  # transformers' `generate`, the only sampler here, gives no log probabilities

    def _generate(self, prompts: list[Any]) -> Any:
        """Generate, and count as clipped only what the length has cut: an action may end without an end token."""
        output = super()._generate(prompts)
        clipped = [ids[-1] not in self.eos_token_ids and not is_complete(self._tokenizer, ids) for ids in output[1]]
        gathered = self.accelerator.gather(torch.tensor(clipped, device=self.accelerator.device))
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["completions/clipped_ratio"][-1] = gathered.float().mean().item()
        return output

    # -- advantages ---------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: Any,
        completions: Any,
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Read every row, put what it says and earns in its column `sampled`, and let TRL take the rewards there."""
        sampled = self._reward.read_completions([row["query_id"] for row in inputs], completion_ids_list)
        for row, completion in zip(inputs, sampled, strict=True):
            row["sampled"] = completion
        rewards_N1: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return rewards_N1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Let TRL draw and score, then replace its advantages, (B,), by those of openings and boxes, (B, T)."""
        rows = [dict(row) for row in inputs]  # each row gets a column of its own on the way
        output: dict[str, Any] = super()._generate_and_score_completions(rows)
        if not self.model.training:
            return output
        completions: list[Completion] = [row["sampled"] for row in rows]
        self._record_rollouts(completions)
        opening_BT = mask_openings(completions, output["completion_ids"])
        opening_BG, box_BG = self._compute_advantages(completions, output, opening_BT)
        opening_B, box_B = (self._take_own(values_BG, opening_BT) for values_BG in (opening_BG, box_BG))
        output["advantages"] = torch.where(opening_BT, opening_B[:, None], box_B[:, None])
        if self._params.factorised:
            output["opening_mask"] = opening_BT
        return output

    def _record_rollouts(self, completions: Sequence[Completion]) -> None:
        step = self.state.global_step + 1
        for completion, arm in zip(completions, self._list_arms(len(completions)), strict=True):
            self._rollouts.append(completion.build_rollout(step, arm))

    def _compute_advantages(
        self, completions: Sequence[Completion], output: dict[str, Any], opening_BT: torch.Tensor
    ) -> tuple[FloatArray, FloatArray]:
        """Return the advantages of openings and of boxes in all processes' groups, (B, G) each."""
        rewards_BG, codes_BG = self._gather_groups(completions)
        decision = self._weigh_decisions(output, opening_BT, rewards_BG, codes_BG) if self._plan.is_balanced else None
        self._note(compute_group_figures(rewards_BG, codes_BG, self._plan))
        if not self._params.factorised:
            return compute_plain_advantages(rewards_BG)
        assert decision is not None  # config.py wants both arms for it
        mean_length = float(output["num_items_in_batch"]) / codes_BG.size
        return compute_factorised_advantages(rewards_BG, codes_BG, decision, self._plan, mean_length)

    def _gather_groups(self, completions: Sequence[Completion]) -> tuple[FloatArray, IntArray]:
        """Return what the rows of all processes' groups earn and what they open, (B, G) each."""
        device = self.accelerator.device
        rewards_B = torch.tensor([row.reward.total for row in completions], dtype=torch.float32, device=device)
        codes_B = torch.tensor([row.opening_code for row in completions], device=device)
        rewards_BG, codes_BG = (
            self.accelerator.gather(own_B).view(-1, self.num_generations).cpu().numpy()
            for own_B in (rewards_B, codes_B)
        )
        return rewards_BG, codes_BG

    def _take_own(self, values_BG: FloatArray, like: torch.Tensor) -> torch.Tensor:
        """Return this process's share of all processes' rows, (B,)."""
        first = self.accelerator.process_index * len(like)
        own = values_BG.reshape(-1)[first : first + len(like)]
        return torch.from_numpy(own).to(like.device, torch.float32)

    def _weigh_decisions(
        self, output: dict[str, Any], opening_BT: torch.Tensor, rewards_BG: FloatArray, codes_BG: IntArray
    ) -> DecisionLoss:
        p_BA = reference_BA = self._compute_p_arms(output, opening_BT)
        if output.get("ref_per_token_logps") is not None:
            reference_BA = self._take_arms((output["ref_per_token_logps"] * opening_BT).sum(1).exp())
        loss = compute_decision_loss(
            compute_arm_values(rewards_BG, codes_BG),
            p_BA,
            reference_BA,
            temperature=self._params.decision_temperature,
            beta=self._params.beta,
        )
        self._note(compute_decision_figures(loss, p_BA))
        return loss

    @torch.no_grad()
    def _compute_p_arms(self, output: dict[str, Any], opening_BT: torch.Tensor) -> FloatArray:
        """Return the probability of either arm's opening in all processes' groups, (B, 2), from the policy in training.

        Rows of an arm open alike, so one speaks for all, and only its opening is read.
        """
        rows_R = self._plan.list_arm_rows(len(opening_BT))
        num_tokens = max(len(opening) for opening in self._openings.values())
        completion_ids_RT = output["completion_ids"][rows_R, :num_tokens]
        logps_RT, _, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([output["prompt_ids"][rows_R], completion_ids_RT], dim=1),
            torch.cat([output["prompt_mask"][rows_R], output["completion_mask"][rows_R, :num_tokens]], dim=1),
            completion_ids_RT.shape[1],
            **select_pictures(output, rows_R, output["prompt_ids"].shape[1] + num_tokens),
        )
        p_B = logps_RT.new_zeros(len(opening_BT))
        p_B[rows_R] = (logps_RT * opening_BT[rows_R, :num_tokens]).sum(1).exp()
        return self._take_arms(p_B)

    def _take_arms(self, p_opening_B: torch.Tensor) -> FloatArray:
        """Return the probability of either arm's opening in every group of all processes, (B, 2)."""
        p_N = self.accelerator.gather(p_opening_B)
        arms: FloatArray = p_N[self._plan.list_arm_rows(len(p_N))].view(-1, 2).double().cpu().numpy()
        return arms

    def _note(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
