"""Binary classifier optimisation of outputs that are labelled one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from mmalign import distributed, functional
from mmalign.objectives import policy_gradient
from mmalign.objectives.kto import check_weights, labelled_rows, unpaired_credit, unpaired_loss
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import total_log_probs
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class BCOUnpaired:
    """BCO as published: each output's reward is told from the mean reward of all labelled ones.

    ``-w log sigmoid(s (r - shift))`` with ``r = beta h``, a mean over labelled rows, with ``s = 1``
    and ``w`` the desirable weight, or ``s = -1`` and the undesirable weight. The shift has no
    gradient and is the mean reward of the labelled rows of the global batch under the policy before
    the batch's first update: the paper takes a running mean over batches, which would depend on
    their order and be one more thing to restore, so a large batch stands in for it. Where a
    source's batch serves several updates, the shift stays that of the first. The classifier of
    prompts that the paper weighs undesirable rows with is not part of this; ``undesirable_weight``
    is one number.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        desirable_weight: Of desirable rows.
        undesirable_weight: Of undesirable rows.

    References:
        2404.04656.
    """

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.01
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        check_weights(self.beta, self.desirable_weight, self.undesirable_weight)

    @property
    def additive_over(self) -> Additive:
        """A row's steps stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return frozenset({"reference", "behaviour", "coupled"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The labelled rows, each with the mean log-ratio, and their number as denominator."""
        assert batch.reference is not None and batch.behaviour is not None
        log_ratio = total_log_probs(batch.behaviour - batch.reference, batch)
        labelled, mismatched = labelled_rows(batch)
        rows = labelled & policy_gradient.scored(batch).any(1)
        found = torch.stack([log_ratio[rows].sum(), rows.sum().to(log_ratio)])
        total, count = distributed.all_reduce(found).unbind()
        mean = total / count.clamp(min=1)
        credited = unpaired_credit(batch, labelled, mismatched)
        metrics = {**credited.metrics, "rewards/shift": (self.beta * float(mean), 1.0)}
        return replace(credited, anchor=mean.expand(len(credited)).clone(), metrics=metrics)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over rows; log 2 times its weight a row at the reference."""
        assert batch.anchor is not None
        shift = self.beta * batch.anchor
        return unpaired_loss(
            scores,
            batch,
            formula=partial(functional.bco_unpaired, beta=self.beta, shift=shift),
            beta=self.beta,
            weights=(self.desirable_weight, self.undesirable_weight),
        )
