"""Direct preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mmalign import functional
from mmalign.objectives import pairwise
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class DPO:
    """DPO on any trajectory: ``-log sigmoid(beta D)`` of each pair, sums over steps.

    Offline pairs, pairs sampled by the policy (online DPO) and mixtures of both are the same to
    this object. Where log-probs are a bound, minus one half of a mean squared error, it is
    Diffusion-DPO, with the paper's beta of 5000.

    Attributes:
        beta: Per nat of log-ratio. Language models 0.01 to 0.5; log-probs that are means over a
            latent 2000 to 5000.
        label_smoothing: Probability that a label is wrong (conservative DPO), 0 to 0.5.

    References:
        2305.18290; 2311.12908 for denoisers.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the chosen side; use more than 0")
        functional.logistic.require_smoothing(self.label_smoothing, "DPO")

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number (see `pairwise.credit`)."""
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        formula = partial(
            functional.cdpo_smoothing, beta=self.beta, label_smoothing=self.label_smoothing
        )
        return pairwise.loss(scores, batch, formula=formula, beta=self.beta)
