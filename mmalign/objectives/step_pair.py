"""Objectives that compare a pair step by step: D3PO and SPO."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import functional
from mmalign.objectives import pairwise
from mmalign.types import Additive, Batch, Loss, Metric, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class D3PO:
    """Direct preference optimisation of denoising paths: every step of the better path is better.

    ``-log sigmoid(beta (log q_w - log q_l))`` with ``q = clip(exp(l - l_ref), 1 - c, 1 + c)``, a
    mean over the steps of all pairs. A step counts where both sides have it, and weighs as its
    lighter side does. Since no step sees another, paths are scored a window of steps at a time.

    Pairs come from a selector (`best_worst`), or are every two rows of a group that earned
    differently. The log-probs have to be those of the steps themselves: a bound is refused.

    Attributes:
        beta: Per nat of log-ratio; of a denoising move, per nat per latent element.
        clip: How far the ratio of a step may leave 1 before it has no gradient, between 0 and 1.

    References:
        2311.13231; both defaults are those of the released code.
    """

    beta: float = 0.1
    clip: float = 0.1

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the chosen side; use more than 0")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip={self.clip} must lie between 0 and 1; the published one is 0.1")

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together, its steps need not."""
        return "group_step"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs of the steps themselves, also under the reference."""
        return frozenset({"reference", "exact"})

    def credit(self, batch: Batch) -> Batch:
        """Pairs (see `pairwise.credit`), and the weight of their steps as denominator."""
        batch = pairwise.credit(batch)
        return replace(batch, denominator=float(step_weights(batch).sum()))

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over the piece's steps of pairs; log 2 a step at the reference."""
        assert batch.reference is not None and batch.pairs is not None
        weight = step_weights(batch)
        ratio = (scores.log_probs - batch.reference)[batch.pairs]
        counted = weight != 0
        ratio = torch.where(counted.unsqueeze(1), ratio, torch.zeros_like(ratio))
        w, r = ratio.unbind(1)
        each = functional.step_pair(w, r, beta=self.beta, clip=self.clip)
        total = (weight * each).sum()
        return Loss(total=total, metrics=self._metrics(total, ratio, weight))

    @torch.no_grad()
    def _metrics(self, total: Tensor, ratio: Tensor, weight: Tensor) -> dict[str, Metric]:
        """Means over the counted steps of pairs; shares of clipped steps of either side."""
        w, r = ratio.unbind(1)
        counted = weight != 0
        low, high = math.log1p(-self.clip), math.log1p(self.clip)
        found = {
            "rewards/chosen": self.beta * w,
            "rewards/rejected": self.beta * r,
            "rewards/margins": self.beta * (w - r),
            "rewards/accuracies": (w > r).to(w),
            "clip_ratio/chosen": ((w < low) | (w > high)).to(w),
            "clip_ratio/rejected": ((r < low) | (r > high)).to(r),
        }
        metrics = {name: pairwise.mean_of(value[counted]) for name, value in found.items()}
        return {"loss": (total.detach(), weight.sum()), **metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class SPO(D3PO):
    """Step-aware preference optimisation: D3PO's loss on pairs of single steps from one state.

    Its source is `step_pairs`, which draws candidates of every step from one and the same latent
    and has each step judged; so the sides of a pair differ by one step alone, and beta is larger.

    Attributes:
        beta: Per nat of log-ratio, per latent element.
        clip: How far the ratio of a step may leave 1 before it has no gradient, between 0 and 1.

    References:
        2406.04314; both defaults are those of the released code.
    """

    beta: float = 10.0


def step_weights(batch: Batch) -> Tensor:
    """``[N, T]``: what each step of a pair counts; 0 unless both sides have it."""
    assert batch.pairs is not None
    both = batch.trajectory.mask[batch.pairs].all(1)
    weight = torch.where(both, batch.pair_weights().amin(1), 0.0)
    return weight if batch.coefficient is None else weight * batch.coefficient.unsqueeze(1)
