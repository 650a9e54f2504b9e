"""Objectives on how much wider the pair's margin is than under the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmalign import functional
from mmalign.functional.logistic import Divergence, require_smoothing
from mmalign.objectives import pairwise
from mmalign.objectives.pair import PairObjective, Reduction
from mmalign.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ConservativeDPO(PairObjective):
    """DPO that takes a share of the labels to be wrong: the margin has a finite best width.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        label_smoothing: Probability that a label is wrong, 0 to 0.5.

    References:
        2305.18290 and its authors' note on noisy labels.
    """

    function = staticmethod(functional.cdpo_smoothing)
    beta: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        require_smoothing(self.label_smoothing, "cdpo_smoothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustDPO(PairObjective):
    """DPO's loss on clean labels, estimated without bias from flipped ones.

    Unbounded below as the margin grows: clip gradients, and do not stop by the training loss.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        label_smoothing: Probability that a label is flipped, at least 0 and below 0.5.

    References:
        2403.00409.
    """

    function = staticmethod(functional.rdpo)
    beta: float = 0.1
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} does not suit rdpo: it is the share of "
                "flipped labels, at least 0 and below 0.5"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthNormalisedDPO(PairObjective):
    """DPO on means over steps, so that a long answer's margin counts no more than a short one's.

    Attributes:
        beta: Per nat a step.

    References:
        2411.15124, whose configs use 5.
    """

    function = staticmethod(functional.ln_dpo)
    reduction: ClassVar[Reduction] = "mean"
    beta: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge(PairObjective):
    """Pairs count until their margin is ``1 / beta`` nats wider than under the reference.

    Attributes:
        beta: Per nat of log-ratio, summed over steps (RSO's gamma).

    References:
        2305.10425 (SLiC-HF), 2309.06657 (RSO).
    """

    function = staticmethod(functional.hinge)
    beta: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class EXO(PairObjective):
    """Reverse KL from the policy's preference to the smoothed label, for pairs.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        label_smoothing: Probability that a label is wrong, above 0 and at most 0.5.

    References:
        2402.00856.
    """

    function = staticmethod(functional.exo_pair)
    beta: float = 0.1
    label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if not 0 < self.label_smoothing <= 0.5:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} does not suit exo_pair, which takes its "
                "logarithm: above 0 and at most 0.5; 1e-3 is usual"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoPOP(PairObjective):
    """A blend of the logistic and the exponential loss, found by search over programs.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        tau: Width of the blend, in units of beta times nats. At the published 0.05 a margin between
            -2.4 and 1.4 nats is pushed down, and pairs start at 0; from 0.11 on none is.

    References:
        2406.08414.
    """

    function = staticmethod(functional.discopop)
    beta: float = 0.05
    tau: float = 0.05

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if self.tau <= 0:
            raise ValueError(f"tau={self.tau} is the width of discopop's blend; use more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class FDPO(PairObjective):
    """DPO held to the reference by another divergence than the reverse KL.

    Attributes:
        beta: Per unit of the linked log-ratio, summed over steps.
        divergence: "reverse_kl" is DPO.
        alpha: Of the alpha divergence; 1 is DPO.

    References:
        2309.16240.
    """

    function = staticmethod(functional.f_dpo)
    beta: float = 0.1
    divergence: Divergence = "forward_kl"
    alpha: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOWithSFT(PairObjective):
    """DPO plus the likelihood of the chosen side, which keeps it from falling (RPO, IRPO).

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        nll_coefficient: Weight of the chosen side's cross-entropy.
        reduction_of_nll: "sum" over steps as the formula has it, or their "mean" (IRPO, with a
            coefficient of 1).

    References:
        2405.16436, whose recipe these defaults are; 2404.19733.
    """

    beta: float = 0.01
    nll_coefficient: float = 0.005
    reduction_of_nll: Reduction = "sum"

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if self.nll_coefficient < 0:
            raise ValueError(
                f"nll_coefficient={self.nll_coefficient} would make the chosen side unlikely"
            )

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; log 2 plus the likelihood term at the reference."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.dpo_sft(
            *six,
            beta=self.beta,
            nll_coefficient=self.nll_coefficient,
            reduction=self.reduction_of_nll,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LDDPO(PairObjective):
    """DPO in which the steps beyond the shorter side's length count less.

    Within a pair, steps after the first ``min(n_w, n_l)`` have weight ``alpha``, under the policy
    and under the reference.

    Attributes:
        beta: Per nat of log-ratio, summed over weighted steps.
        alpha: Weight of the steps beyond; 1 is DPO.

    References:
        2409.06411.
    """

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must lie between 0 and 1; 1 is DPO")

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; log 2 at the reference."""
        return functional.dpo(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=self.beta)

    def credit(self, batch: Batch) -> Batch:
        """Pairs, and the weights of their steps."""
        batch = pairwise.credit(batch)
        assert batch.pairs is not None
        mask = batch.trajectory.mask[batch.pairs]
        count = mask.cumsum(2)
        shorter = mask.sum(2).amin(1)[:, None, None]
        beyond = torch.where(count > shorter, self.alpha, 1.0)
        return replace(batch, pair_weight=batch.pair_weights() * beyond)
