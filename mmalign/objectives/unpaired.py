"""What objectives of outputs that are labelled one by one have in common.

Labels come from an `unpaired` source. Batches without labels get them from their rewards: a row
that earned more than the mean of its group is desirable, one that earned less is not. So the chosen
side of a recorded pair is desirable and its rejected side undesirable, and rollouts will do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmalign import distributed, pairing
from mmalign.objectives import policy_gradient
from mmalign.objectives.pair import Reduction
from mmalign.objectives.pairwise import mean_of, total_log_probs
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedObjective(ABC):
    """An objective that is a formula of rows with a label; each is a dataclass of its settings.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.
        desirable_weight: Of desirable rows.
        undesirable_weight: Of undesirable rows.
    """

    reduction: ClassVar[Reduction] = "sum"
    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings under which nothing, or the wrong outputs, would be preferred.

        Raises:
            ValueError: Naming the setting.
        """
        if self.beta <= 0:
            raise ValueError(
                f"beta={self.beta} would not prefer desirable outputs; use more than 0"
            )
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def additive_over(self) -> Additive:
        """A row's steps stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    @abstractmethod
    def formula(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """``[B]`` losses of rows before their weights, from ``[B]`` log-ratios."""

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """The labelled rows, and their number as denominator."""
        return labelled_alone(batch, *labelled_rows(batch))

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The formula times the weight of a row's label, summed over the piece's rows."""
        assert batch.label is not None and batch.reference is not None
        log_ratio = total_log_probs(scores.log_probs - batch.reference, batch)
        counted = policy_gradient.scored(batch).any(1)
        weight = torch.where(batch.label, self.desirable_weight, self.undesirable_weight)
        each = weight * self.formula(log_ratio, batch)
        # A row without weight only keeps a process without data in step with the others.
        total = torch.where(counted, each, 0.0).sum()
        with torch.no_grad():
            s = total_log_probs(scores.log_probs, batch)
            sides = {"chosen": counted & batch.label, "rejected": counted & ~batch.label}
            metrics = {"loss": (total.detach(), counted.sum().to(total))}
            for side, rows in sides.items():
                metrics[f"rewards/{side}"] = mean_of(self.beta * log_ratio[rows])
                metrics[f"logps/{side}"] = mean_of(s[rows])
        return Loss(total=total, metrics=metrics)


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


def labelled_alone(batch: Batch, labelled: Tensor, mismatched: Tensor) -> Batch:
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


def mean_log_ratio(batch: Batch, rows: Tensor) -> tuple[Tensor, float]:
    """The mean over some rows of all processes before an update, and their number; 0 of none."""
    assert batch.reference is not None and batch.behaviour is not None
    log_ratio = total_log_probs(batch.behaviour - batch.reference, batch)
    rows = rows & policy_gradient.scored(batch).any(1)
    found = torch.stack([log_ratio[rows].sum(), rows.sum().to(log_ratio)])
    total, count = distributed.all_reduce(found).unbind()
    return total / count.clamp(min=1), float(count)
