"""Objectives of outputs that are labelled one by one: desirable, or undesirable.

Labels come from an `unpaired` source. Batches without labels get them from their rewards: a row
that earned more than the mean of its group is desirable, one that earned less is not. So the chosen
side of a recorded pair is desirable and its rejected side undesirable, and rollouts will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmalign import distributed, functional, pairing
from mmalign.objectives import policy_gradient
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import mean_of, total_log_probs
from mmalign.types import Additive, Batch, Loss, Scores

KLPoint = Literal["mismatched", "matched"]
Formula = Callable[[Tensor, Tensor], Tensor]
"""From log-ratios and labels of rows, ``[B]`` each, to their losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KTO:
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

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kl_point: KLPoint = "mismatched"

    def __post_init__(self) -> None:
        check_weights(self.beta, self.desirable_weight, self.undesirable_weight)
        if self.kl_point not in ("mismatched", "matched"):
            raise ValueError(
                f"kl_point={self.kl_point!r} is unknown; use 'mismatched' or 'matched', or the "
                "objective apo_zero_unpaired for none"
            )

    @property
    def additive_over(self) -> Additive:
        """A row's steps stay together."""
        return "group"

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
        assert batch.reference is not None and batch.behaviour is not None
        log_ratio = total_log_probs(batch.behaviour - batch.reference, batch)
        labelled, mismatched = labelled_rows(batch)
        rows = mismatched if self.kl_point == "mismatched" else labelled
        rows = rows & policy_gradient.scored(batch).any(1)
        found = torch.stack([log_ratio[rows].sum(), rows.sum().to(log_ratio)])
        total, count = distributed.all_reduce(found).unbind()
        if float(count) == 0 and self.kl_point == "mismatched":
            raise ValueError(
                "kto's KL point is the mean over outputs of other prompts, and this batch has "
                "none; set `mismatched: true` on a source of `type: unpaired`, or "
                "`kl_point: matched` on the objective"
            )
        point = (total / count.clamp(min=1)).clamp(min=0)
        credited = unpaired_credit(batch, labelled, mismatched)
        metrics = {**credited.metrics, "kl_point": (float(point), 1.0)}
        anchor = point.expand(len(credited)).clone()
        return replace(credited, anchor=anchor, metrics=metrics)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over rows; half its weight a row at the reference."""
        assert batch.anchor is not None
        return unpaired_loss(
            scores,
            batch,
            formula=partial(functional.kto, beta=self.beta, kl_point=batch.anchor),
            beta=self.beta,
            weights=(self.desirable_weight, self.undesirable_weight),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class APOZeroUnpaired:
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

    reduction: ClassVar[Reduction] = "sum"
    beta: float = 0.1
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
        """Log-probs under the reference."""
        return frozenset({"reference"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The labelled rows, and their number as denominator."""
        return unpaired_credit(batch, *labelled_rows(batch))

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over rows; half its weight a row at the reference."""
        return unpaired_loss(
            scores,
            batch,
            formula=partial(functional.kto, beta=self.beta),
            beta=self.beta,
            weights=(self.desirable_weight, self.undesirable_weight),
        )


def labelled_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """``[B]`` bool each: rows with a label, and mismatched ones, which have labels and no reward.

    Without labels every row that did not earn just its group's mean gets one.
    """
    reward = pairing.scalar_reward(batch)
    if batch.label is not None:
        return ~reward.isnan(), reward.isnan()
    return ~reward.isnan() & (above_mean(batch) != 0), torch.zeros_like(reward, dtype=torch.bool)


def above_mean(batch: Batch) -> Tensor:
    """``[B]`` the sign of each reward less the mean of its group; 0 where nobody judged."""
    reward = pairing.scalar_reward(batch)
    found = torch.zeros_like(reward)
    for rows in pairing.groups(batch):
        rows = rows[~reward[rows].isnan()]
        # The mean of equal numbers may be rounded to another one.
        if len(rows) and bool((reward[rows] != reward[rows[0]]).any()):
            found[rows] = (reward[rows] - reward[rows].mean()).sign()
    return found


def unpaired_credit(batch: Batch, labelled: Tensor, mismatched: Tensor) -> Batch:
    """The batch with its labelled rows alone, counted by label."""
    label = above_mean(batch) > 0 if batch.label is None else batch.label
    unjudged = batch.reward.isnan() & ~mismatched
    counted = labelled & policy_gradient.scored(batch).any(1)
    numbers = {
        "desirable": (counted & label).sum(),
        "undesirable": (counted & ~label).sum(),
        pairing.UNJUDGED: unjudged.sum(),
        pairing.TIES: (~labelled & ~mismatched & ~unjudged).sum(),
    }
    batch = replace(batch, label=label, pairs=None, coefficient=None, pair_weight=None)
    kept = policy_gradient.keep_rows(batch, counted)
    return replace(
        pairing.counted(kept, {name: float(n) for name, n in numbers.items()}),
        denominator=float(counted.sum()),
    )


def unpaired_loss(
    scores: Scores, batch: Batch, *, formula: Formula, beta: float, weights: tuple[float, float]
) -> Loss:
    """The sum over the piece's rows of a formula, times the weight of their label."""
    assert batch.label is not None and batch.reference is not None
    log_ratio = total_log_probs(scores.log_probs - batch.reference, batch)
    counted = policy_gradient.scored(batch).any(1)
    each = torch.where(batch.label, *weights) * formula(log_ratio, batch.label)
    # A row without weight only keeps a process without data in step with the others.
    total = torch.where(counted, each, 0.0).sum()
    with torch.no_grad():
        s = total_log_probs(scores.log_probs, batch)
        sides = {"chosen": counted & batch.label, "rejected": counted & ~batch.label}
        metrics = {"loss": (total.detach(), counted.sum().to(total))}
        for side, rows in sides.items():
            metrics[f"rewards/{side}"] = mean_of(beta * log_ratio[rows])
            metrics[f"logps/{side}"] = mean_of(s[rows])
    return Loss(total=total, metrics=metrics)


def check_weights(beta: float, desirable: float, undesirable: float) -> None:
    """Refuse settings under which nothing, or the wrong outputs, would be preferred.

    Raises:
        ValueError: Naming the setting.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta} would not prefer desirable outputs; use more than 0")
    for name, value in (("desirable_weight", desirable), ("undesirable_weight", undesirable)):
        if value < 0:
            raise ValueError(f"{name}={value} must not be negative")
