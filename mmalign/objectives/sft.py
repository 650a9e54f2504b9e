"""Supervised fine-tuning: imitating outputs that are right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from mmalign import pairing
from mmalign.objectives import policy_gradient
from mmalign.types import Additive, Batch, Loss, Scores

UNREWARDED = "dropped/unrewarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class SFT:
    """Cross-entropy of outputs to imitate: ``-log p`` of every scored step.

    Rows that earned more than ``min_reward`` are imitated: demonstrations (reward 1), the chosen
    sides of recorded pairs (rewards 1 and 0), and rollouts that a judge likes, which is rejection
    sampling. Where log-probs are a bound it is the usual training of a denoiser.

    Attributes:
        aggregate: "token" divides the sum by the scored steps of the global batch, as common code
            does; "sequence" takes each row's mean first, then the mean over rows, so that short
            outputs count as much as long ones.
        min_reward: Rows that earned no more than this are left out and counted.
    """

    aggregate: Literal["token", "sequence"] = "token"
    min_reward: float = 0.0

    def __post_init__(self) -> None:
        if self.aggregate not in ("token", "sequence"):
            raise ValueError(f"aggregate={self.aggregate!r} is unknown; use 'token' or 'sequence'")

    @property
    def additive_over(self) -> Additive:
        """Every step stands alone."""
        return "step"

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: no reference, and a bound will do."""
        return frozenset()

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The rows to imitate, every step of them with advantage 1, and the denominator."""
        reward = pairing.scalar_reward(batch)
        judged = ~reward.isnan()
        kept = judged & (reward > self.min_reward)
        dropped = {
            pairing.UNJUDGED: int((~judged).sum()),
            UNREWARDED: int((judged & ~kept).sum()),
        }
        batch = replace(batch, pairs=None, coefficient=None, pair_weight=None)
        batch = pairing.counted(policy_gradient.keep_rows(batch, kept), dropped)
        batch = replace(batch, advantage=torch.ones_like(batch.weight))
        return policy_gradient.weigh(batch, aggregate=self.aggregate, max_length=None)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over steps; log V a step of a uniform distribution over V symbols."""
        metrics = {"logps/steps": policy_gradient.mean_of_steps(scores.log_probs, batch)}
        return policy_gradient.summed(-scores.log_probs, batch, metrics)
