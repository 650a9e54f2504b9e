"""Objectives of pairs that look into the steps: divergences along the way, and critical steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmalign import functional
from mmalign.objectives import pairwise
from mmalign.objectives.pair import PairObjective
from mmalign.objectives.pairwise import mean_of
from mmalign.protocols import Likelihood
from mmalign.types import Batch, Loss, Scores

SEQUENTIAL = frozenset({"exact", "kl_forward"})
"""The reference's log-probs come with its distributions, from one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TDPO1(PairObjective):
    """Token-level DPO: the sides' divergences from the reference count in their margin.

    ``-LS(beta (D - (K_l - K_w)))`` where ``K`` is the KL of the reference to the policy, exact over
    all symbols, summed over a side's steps. The gradient goes through both sums, so that straying
    on the chosen side pays as straying on the rejected side costs: for small learning rates.

    Attributes:
        beta: Per nat, sums over steps.

    References:
        2404.11999.
    """

    beta: float = 0.1

    @property
    def needs(self) -> frozenset[str]:
        """Whole distributions of policy and reference at every step."""
        return SEQUENTIAL

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        batch = _with_reference(scores, batch)
        sums = _sums(scores, batch)
        each = functional.tdpo1(*sums, beta=self.beta)
        return _with_divergences(pairwise.summed(each, scores, batch, beta=self.beta), sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class TDPO2(PairObjective):
    """Token-level DPO that never raises the chosen side's divergence from the reference.

    ``-LS(beta (D - alpha (K_l - sg(K_w))))``: see `TDPO1`; ``sg`` cuts the gradient.

    Attributes:
        beta: Per nat, sums over steps.
        alpha: Weight of the divergences; 0 is DPO.

    References:
        2404.11999.
    """

    beta: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        if self.alpha < 0:
            raise ValueError(
                f"alpha={self.alpha} would reward straying on the rejected side; use 0 or more"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Whole distributions of policy and reference at every step."""
        return SEQUENTIAL

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; log 2 a pair at the reference."""
        batch = _with_reference(scores, batch)
        sums = _sums(scores, batch)
        each = functional.tdpo2(*sums, beta=self.beta, alpha=self.alpha)
        return _with_divergences(pairwise.summed(each, scores, batch, beta=self.beta), sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalDPO(PairObjective):
    """DPO in which a step of the rejected side counts as far as it went wrong there.

    ``-LS(beta (h_w - sum_t (1 - s_t) h_{l,t}))``: a score ``s_t`` near 0 marks a step that a model
    of wrong outputs likes and one of right outputs shuns. The weights ``1 - s_t`` come with the
    batch, as data without gradient: from the source `critical`, or from a column of the data.

    Attributes:
        beta: Per nat, sums over (weighted) steps.

    References:
        2411.19943. The code released with it takes the logistic loss position by position, the
        sides aligned by index, and averages over the padded table; here steps are summed first.
    """

    function = staticmethod(functional.dpo)
    likelihood: ClassVar[Likelihood | None] = "exact"
    beta: float = 0.1

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and weights of the steps."""
        return frozenset({"exact", "reference", "step_weights"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number.

        Raises:
            ValueError: The pairs carry no weights, or weights of the chosen side.
        """
        credited = pairwise.credit(batch)
        if credited.pair_weight is None:
            raise ValueError(
                "cdpo_critical needs a weight of every step of the rejected sides, and the batches "
                "of this source carry none; use `type: critical` around the source, or data with a "
                "column `rejected_weights`"
            )
        assert credited.pairs is not None
        plain = credited.weight[credited.pairs[:, 0]]
        unlike = (credited.pair_weight[:, 0] != plain).any(1)
        if credited.coefficient is not None:
            unlike &= credited.coefficient != 0
        if bool(unlike.any()):
            raise ValueError(
                "cdpo_critical weighs the rejected side alone, and the pairs of this source weigh "
                "steps of the chosen side too; use `dpo` for such data"
            )
        return credited


def _with_reference(scores: Scores, batch: Batch) -> Batch:
    assert scores.reference is not None
    return replace(batch, reference=scores.reference)


def _sums(scores: Scores, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``[N]`` log-probs of policy and reference, and divergences, of chosen and rejected sides."""
    assert batch.reference is not None and scores.kl_forward is not None
    own, reference, divergence = (
        pairwise.side_sums(values, batch)
        for values in (scores.log_probs, batch.reference, scores.kl_forward)
    )
    return (*own, *reference, *divergence)


def _with_divergences(loss: Loss, sums: tuple[Tensor, ...]) -> Loss:
    further = {"kl/chosen": mean_of(sums[4]), "kl/rejected": mean_of(sums[5])}
    return replace(loss, metrics={**loss.metrics, **further})
