"""Iterative Nash policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mmalign import functional
from mmalign.functional import masked_sum
from mmalign.objectives import pairwise
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class INPO:
    """A step of no-regret learning against oneself, held to the reference and the last iterate.

    ``((s_w - s_l) - (tau/eta)(ref_w - ref_l) - (1 - tau/eta)(before_w - before_l) - 1/(2 eta))^2``.
    The iterate before is the policy that sampled the batch. So an iteration is one batch of a
    source: a large ``batch_size`` with ``training.updates_per_batch`` as many as its passes. With
    one update a batch, policy and iterate are the same in value, and the loss still pulls the
    margin beyond the iterate's. On recorded pairs the iterate is the policy before the batch's
    first update.

    Attributes:
        eta: The target margin is ``1 / (2 eta)`` nats; smaller is farther.
        tau: How much of the pull is to the reference rather than to the iterate, up to ``eta``.

    References:
        2407.00617; both defaults are those of third-party code.
    """

    eta: float = 0.0075
    tau: float = 0.0025

    def __post_init__(self) -> None:
        if not 0 < self.tau <= self.eta:
            raise ValueError(
                f"tau={self.tau} and eta={self.eta} do not suit inpo: 0 < tau <= eta; the usual "
                "tau is a third of eta"
            )

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy that sampled."""
        return frozenset({"reference", "behaviour"})

    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number (see `pairwise.credit`)."""
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; ``1 / (4 eta^2)`` a pair where all three agree."""
        assert batch.pairs is not None
        # A batch that serves one update was sampled by the policy as it is.
        before = scores.log_probs.detach() if batch.behaviour is None else batch.behaviour
        mask = batch.trajectory.mask[batch.pairs]
        sums = masked_sum(before[batch.pairs] * batch.pair_weights(), mask)
        before_w, before_l = sums.unbind(1)
        formula = partial(
            functional.inpo, eta=self.eta, tau=self.tau, before_w=before_w, before_l=before_l
        )
        return pairwise.loss(scores, batch, formula=formula, beta=self.eta)
