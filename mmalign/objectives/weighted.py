"""Pairs weighed by how likely the policy itself is to produce them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmalign import functional
from mmalign.objectives.coupled import AOT, AOTUnpaired
from mmalign.objectives.dpo import DPO
from mmalign.objectives.ipo import IPO
from mmalign.objectives.latent_em import LatentEM
from mmalign.objectives.logic import Logic
from mmalign.objectives.pair import PairObjective
from mmalign.objectives.pairwise import mean_of
from mmalign.protocols import Objective
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class WPO:
    """Weighted preference optimisation: recorded pairs count as if the policy had sampled them.

    The loss of each pair times ``min(exp(U_w + U_l), max_weight)``, without gradient, where
    ``U(y) = mean_t (l_t - log sum_v p_t(v)^2)``: the log-prob of a side's steps, less what a draw
    of the policy's own would have. The sum over pairs is divided by their number, not by the
    weights. For Gaussian steps the sum over symbols is the integral of the squared density.

    Attributes:
        of: The loss of pairs that is weighed.
        max_weight: Bound of a pair's weight; None for none.

    References:
        2406.11827. The bound of 1 is that of TRL's code.
    """

    of: Objective = field(default_factory=DPO)
    max_weight: float | None = 1.0

    def __post_init__(self) -> None:
        name = type(self.of).__name__
        if isinstance(self.of, AOT | AOTUnpaired):
            raise ValueError(
                f"wpo cannot weigh {name}, which compares by rank: a part of a pair has none"
            )
        if isinstance(self.of, LatentEM):
            raise ValueError(
                "wpo cannot weigh LatentEM, which learns its own weights from batch to batch"
            )
        if not isinstance(self.of, PairObjective | IPO | Logic):
            raise ValueError(f"wpo weighs losses of pairs, and {name} is none; use dpo or its kin")
        if self.max_weight is not None and self.max_weight <= 0:
            raise ValueError(f"max_weight={self.max_weight} would leave nothing to learn from")

    @property
    def inner(self) -> tuple[Objective, ...]:
        """The weighed loss."""
        return (self.of,)

    @property
    def additive_over(self) -> Additive:
        """As the weighed loss."""
        return self.of.additive_over

    @property
    def needs(self) -> frozenset[str]:
        """What the weighed loss needs, probabilities, and how concentrated each step's are."""
        return self.of.needs | {"exact", "log_collision"}

    def credit(self, batch: Batch) -> Batch:
        """That of the weighed loss."""
        return self.of.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The weighed loss, times the weights, summed over pairs."""
        weight = self.weights(scores, batch)
        given = torch.ones_like(weight) if batch.coefficient is None else batch.coefficient
        found = self.of.loss(scores, replace(batch, coefficient=given * weight))
        metrics = {
            **found.metrics,
            "loss": (found.total.detach(), given.sum()),
            "wpo/weight": mean_of(weight[given != 0]),
        }
        return replace(found, metrics=metrics)

    @torch.no_grad()
    def weights(self, scores: Scores, batch: Batch) -> Tensor:
        """``[N]`` weights of the pairs, without gradient."""
        assert batch.pairs is not None and scores.log_collision is not None
        each = functional.on_policy_log_weights(
            scores.log_probs, scores.log_collision, batch.trajectory.mask
        )
        weight = each[batch.pairs].sum(1).exp()
        return weight if self.max_weight is None else weight.clamp(max=self.max_weight)
