"""Objectives in which each side's own reward counts, not the margin alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign import functional
from mmalign.objectives.pair import PairObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class NCA(PairObjective):
    """Noise-contrastive alignment: the chosen side's reward is kept up, not just above.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2402.05369.
    """

    beta: float = 0.01

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; 2 log 2 at the reference."""
        return functional.nca_pair(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class APOZero(PairObjective):
    """Anchored preference optimisation where chosen answers are better than the model's.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2408.06266.
    """

    beta: float = 0.1

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; 1 at the reference."""
        return functional.apo_zero(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class APODown(PairObjective):
    """Anchored preference optimisation where chosen answers are worse than the model's.

    Both sides are pushed down, the rejected one more.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2408.06266.
    """

    beta: float = 0.1

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; 1 at the reference."""
        return functional.apo_down(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class SPPO(PairObjective):
    """Self-play preference optimisation with win rates 1 and 0: both log-ratios to a target.

    Attributes:
        beta: The targets are plus and minus ``1 / (2 beta)`` nats.

    References:
        2405.00675.
    """

    beta: float = 0.001

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` squared nats; ``1 / (2 beta^2)`` at the reference."""
        return functional.sppo_hard(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=self.beta)
