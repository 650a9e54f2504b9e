"""Outputs that are right, kept as likely as they were."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmalign import functional, pairing
from mmalign.objectives import policy_gradient
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import mean_of, total_log_probs
from mmalign.objectives.sft import UNREWARDED
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """An anchor on each output that is right: ``-LS(beta h - shift)``, sums over steps.

    A margin can widen while both sides become unlikely; this holds the reward of the right one
    above ``shift``. It is meant as a term of `mpo`: mDPO's third, whose first two are `dpo` of the
    pairs of `views`. Rows that earned more than ``min_reward`` are anchored: the chosen sides of
    recorded pairs. The loss is a mean over them.

    Attributes:
        beta: Per nat of log-ratio.
        shift: Reward that an anchored output is held above (delta).
        min_reward: Rows that earned no more than this are left out and counted.

    References:
        mDPO, 2406.11839.
    """

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.1
    shift: float = 0.0
    min_reward: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(
                f"beta={self.beta} would not keep the right output likely; use more than 0"
            )

    @property
    def additive_over(self) -> Additive:
        """The steps of a row stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The rows to anchor, with advantage 1, and their number."""
        reward = pairing.scalar_reward(batch)
        judged = ~reward.isnan()
        kept = judged & (reward > self.min_reward)
        dropped = {
            pairing.UNJUDGED: int((~judged).sum()),
            UNREWARDED: int((judged & ~kept).sum()),
        }
        batch = replace(batch, pairs=None, coefficient=None, pair_weight=None)
        batch = pairing.counted(policy_gradient.keep_rows(batch, kept), dropped)
        total = float(policy_gradient.scored(batch).any(1).sum())
        return replace(batch, advantage=torch.ones_like(batch.weight), denominator=total)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over rows; log 2 a row at the reference."""
        assert batch.reference is not None
        counted = policy_gradient.scored(batch).any(1)
        h = total_log_probs(scores.log_probs - batch.reference, batch)[counted]
        each = functional.anchor(h, beta=self.beta, shift=self.shift)
        metrics = {"loss": mean_of(each), "rewards/anchored": mean_of(self.beta * h)}
        return Loss(total=each.sum(), metrics=metrics)
