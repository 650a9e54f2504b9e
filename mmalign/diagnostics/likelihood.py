"""Where the likelihood has gone: displacement of a pair's two sides, and KL to the reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign.functional.stable import masked_sum
from mmalign.functional.surrogate import KLKind, kl

KINDS: tuple[KLKind, ...] = ("k1", "k2", "k3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Displacement:
    """What training did to the likelihoods of pairs; every tensor is ``[N]``.

    Attributes:
        chosen: ``h_w = s_w - ref_s_w``, nats: by how much the chosen side became likelier.
        rejected: ``h_l``, likewise.
    """

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """``D = h_w - h_l``, nats; 0 at the reference."""
        return self.chosen - self.rejected

    @property
    def chosen_fell(self) -> Tensor:
        """Whether the chosen side became less likely."""
        return self.chosen < 0

    @property
    def both_fell(self) -> Tensor:
        """Whether both sides did: the probability went to outputs that nobody recorded."""
        return self.chosen_fell & (self.rejected < 0)

    @property
    def fell_while_margin_rose(self) -> Tensor:
        """Whether the chosen side became less likely though the margin is positive."""
        return self.chosen_fell & (self.margin > 0)


def displacement(s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor) -> Displacement:
    """What training did to the likelihoods of pairs.

    Args:
        s_w: ``[N]`` log-probs of the chosen outputs, summed over steps, nats.
        s_l: See ``s_w``, of the rejected ones.
        ref_s_w: ``[N]`` the same under the reference.
        ref_s_l: See ``ref_s_w``.

    Returns:
        All 0, and no side fallen, where policy and reference agree.
    """
    return Displacement(chosen=s_w - ref_s_w, rejected=s_l - ref_s_l)


def sample_kl(log_probs: Tensor, reference: Tensor, mask: Tensor) -> dict[KLKind, Tensor]:
    """``KL(policy || reference)`` of samples of the policy, by three estimators.

    The sum over steps of `functional.surrogate.kl`. The means of k1 and k3 over samples are the KL
    of whole outputs, where each step's log-probs are of a distribution drawn from step by step; k1
    may be negative, k3 is not and varies less while the two are near. k2 is biased.

    Args:
        log_probs: ``[B, T]`` nats, of outputs that the policy drew.
        reference: ``[B, T]`` nats.
        mask: ``[B, T]`` bool.

    Returns:
        ``[B]`` nats an output under each kind; 0 where the two agree.

    References:
        Schulman, "Approximating KL divergence" (2020).
    """
    return {kind: masked_sum(kl(log_probs, reference, kind=kind), mask) for kind in KINDS}
