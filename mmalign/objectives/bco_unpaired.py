"""Binary classifier optimisation of outputs that are labelled one by one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import functional
from mmalign.objectives.unpaired import (
    UnpairedObjective,
    labelled_alone,
    labelled_rows,
    mean_log_ratio,
)
from mmalign.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BCOUnpaired(UnpairedObjective):
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

    beta: float = 0.01

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return frozenset({"reference", "behaviour", "coupled"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The labelled rows, each with the mean log-ratio, and their number as denominator."""
        labelled, mismatched = labelled_rows(batch)
        mean, _ = mean_log_ratio(batch, labelled)
        credited = labelled_alone(batch, labelled, mismatched)
        metrics = {**credited.metrics, "rewards/shift": (self.beta * float(mean), 1.0)}
        return replace(credited, anchor=mean.expand(len(credited)).clone(), metrics=metrics)

    def formula(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[B]``; log 2 at the reference."""
        assert batch.label is not None and batch.anchor is not None
        shift = self.beta * batch.anchor
        return functional.bco_unpaired(log_ratio, batch.label, beta=self.beta, shift=shift)
