"""Direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign import functional
from mmalign.objectives.pair import PairObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO(PairObjective):
    """DPO on any trajectory: ``-log sigmoid(beta D)`` of each pair, sums over steps.

    Offline pairs, pairs sampled by the policy (online DPO) and mixtures of both are the same to
    this object. Where log-probs are a bound, minus one half of a mean squared error, it is
    Diffusion-DPO, with the paper's beta of 5000.

    Attributes:
        beta: Per nat of log-ratio. Language models 0.01 to 0.5; log-probs that are means over a
            latent 2000 to 5000.
        label_smoothing: Probability that a label is wrong (conservative DPO), 0 to 0.5.
        sft_weight: Adds this times the cross-entropy of the chosen side, nats, a mean over its
            steps: the sum DPO compares can widen while both sides become unlikely. 0 for none;
            MIA-DPO fares best with 0.1, iterative reasoning PO (2404.19733) uses 1.

    References:
        2305.18290; 2311.12908 for denoisers; 2410.17637 for the likelihood term.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        functional.logistic.require_smoothing(self.label_smoothing, "DPO")
        if self.sft_weight < 0:
            raise ValueError(
                f"sft_weight={self.sft_weight} would make the chosen side unlikely; use 0 or more"
            )

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; ``log 2 + sft_weight NLL`` at the reference."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        compared = functional.cdpo_smoothing(
            *six, beta=self.beta, label_smoothing=self.label_smoothing
        )
        if self.sft_weight == 0:
            return compared
        return compared - self.sft_weight * s_w / n_w.clamp(min=1)
