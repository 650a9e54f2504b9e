"""Objectives of outputs that are labelled one by one: desirable, or undesirable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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

KLPoint = Literal["mismatched", "matched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO(UnpairedObjective):
    """Kahneman-Tversky optimisation: each output's reward against the policy's distance so far.

    ``w (1 - sigmoid(s beta (h - z0)))``, a mean over labelled rows, with ``s = 1`` and ``w`` the
    desirable weight, or ``s = -1`` and the undesirable weight. The KL point
    ``z0 = max(0, mean h)`` has no gradient and is one number for the whole global batch: it is
    taken from the log-probs that the policy gives before the batch's first update, so that any
    division into microbatches and processes gives the same gradient. Where a source's batch serves
    several updates, z0 stays that of the first.

    With ``kl_point: matched`` on a policy of ``likelihood: elbo`` it is Diffusion-KTO. Its released
    code's beta of 1000 multiplies differences of mean squared errors; log-probs are minus one half
    of them, so that ours is 2000.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        desirable_weight: Of desirable rows.
        undesirable_weight: Of undesirable rows. The ratio of desirable to undesirable rows, each
            times its weight, should lie between 1 and 4/3.
        kl_point: What z0 is the mean of. "mismatched": outputs of other prompts, which an
            `unpaired` source adds with ``mismatched: true``; they are scored and not trained on.
            "matched": the labelled rows themselves.

    References:
        2402.01306; 2404.04465 for denoisers.
    """

    beta: float = 0.1
    kl_point: KLPoint = "mismatched"

    def __post_init__(self) -> None:
        UnpairedObjective.__post_init__(self)
        if self.kl_point not in ("mismatched", "matched"):
            raise ValueError(
                f"kl_point={self.kl_point!r} is unknown; use 'mismatched' or 'matched', or the "
                "objective apo_zero_unpaired for none"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and under the policy before the batch's first update."""
        return frozenset({"reference", "behaviour", "coupled"})

    def odd_balance(self, *, desirable: int, undesirable: int) -> str | None:
        """Why a data set's labels call for other weights; None where they do not."""
        up, down = desirable * self.desirable_weight, undesirable * self.undesirable_weight
        if down <= up <= 4 / 3 * down:
            return None
        return (
            f"{desirable} desirable and {undesirable} undesirable outputs weigh {up:g} to "
            f"{down:g}; choose desirable_weight and undesirable_weight so that the first is 1 to "
            "4/3 times the second"
        )

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The labelled rows, each with the KL point, and their number as denominator.

        Raises:
            ValueError: The KL point is of mismatched rows and the batch has none.
        """
        labelled, mismatched = labelled_rows(batch)
        rows = mismatched if self.kl_point == "mismatched" else labelled
        mean, count = mean_log_ratio(batch, rows)
        if count == 0 and self.kl_point == "mismatched":
            raise ValueError(
                "kto's KL point is the mean over outputs of other prompts, and this batch has "
                "none; set `mismatched: true` on a source of `type: unpaired`, or "
                "`kl_point: matched` on the objective"
            )
        point = mean.clamp(min=0)
        credited = labelled_alone(batch, labelled, mismatched)
        metrics = {**credited.metrics, "kl_point": (float(point), 1.0)}
        anchor = point.expand(len(credited)).clone()
        return replace(credited, anchor=anchor, metrics=metrics)

    def formula(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[B]``; 0.5 at the reference."""
        assert batch.label is not None and batch.anchor is not None
        return functional.kto(log_ratio, batch.label, beta=self.beta, kl_point=batch.anchor)


@dataclass(frozen=True, slots=True, kw_only=True)
class APOZeroUnpaired(UnpairedObjective):
    """Anchored preference optimisation of unpaired outputs: KTO with a KL point of 0.

    ``1 - sigmoid(beta h)`` of desirable rows, ``sigmoid(beta h)`` of undesirable ones: a mean over
    rows that nothing couples.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        desirable_weight: Of desirable rows.
        undesirable_weight: Of undesirable rows.

    References:
        2408.06266.
    """

    beta: float = 0.1

    def formula(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[B]``; 0.5 at the reference."""
        assert batch.label is not None
        return functional.kto(log_ratio, batch.label, beta=self.beta)
