"""Several objectives of one batch, added up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmalign import distributed
from mmalign.objectives.coupled import BCO
from mmalign.objectives.dpo import DPO
from mmalign.objectives.kto import KTO
from mmalign.objectives.sft import SFT
from mmalign.protocols import Objective, Remembering
from mmalign.types import Additive, Batch, Loss, Metric, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """An objective and its weight.

    Attributes:
        objective: What is added.
        weight: More than 0.
    """

    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        name = type(self.objective).__name__
        if self.weight <= 0:
            raise ValueError(f"weight={self.weight} of {name} must be more than 0; or remove it")
        if isinstance(self.objective, Remembering):
            raise ValueError(
                f"{name} learns from batch to batch, which a term of mpo cannot; use it alone"
            )
        if isinstance(self.objective, KTO) and self.objective.kl_point == "mismatched":
            raise ValueError(
                "KTO as a term of mpo shares its batch, which has no mismatched outputs; use "
                "kl_point: matched"
            )


TERMS = (
    Term(objective=DPO(), weight=0.8),
    Term(objective=BCO(), weight=0.2),
    Term(objective=SFT(), weight=1.0),
)


COARSEST_FIRST: tuple[Additive, ...] = ("group", "group_step", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class MPO:
    """Mixed preference optimisation: ``sum_j c_j mean(loss_j)`` over terms that share a batch.

    Each term has its own credit, keeps the rows it has a use for and is a mean as it is alone: over
    pairs, over tokens. The defaults are MPO: preference, quality and generation. DPO with a
    likelihood term is ``dpo`` and ``sft``. Metrics are those of the first term; those of the others
    and all losses have the term's name and number before them.

    Each term's mean is over all processes, and its denominator is known before the first forward
    pass, so that pieces still add up.

    Attributes:
        terms: The objectives and their weights. Their settings are their own.

    References:
        2411.10442.
    """

    terms: tuple[Term, ...] = TERMS

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("mpo without terms has nothing to minimise; list some in `terms`")
        if any(isinstance(inner, MPO) for inner in self.inner):
            raise ValueError("mpo within mpo says nothing that its terms could not; list them")

    @property
    def inner(self) -> tuple[Objective, ...]:
        """The terms, without their weights."""
        return tuple(term.objective for term in self.terms)

    @property
    def additive_over(self) -> Additive:
        """As the coarsest of the terms."""
        found = {inner.additive_over for inner in self.inner}
        return next(unit for unit in COARSEST_FIRST if unit in found)

    @property
    def needs(self) -> frozenset[str]:
        """Whatever one of the terms needs."""
        return frozenset().union(*(inner.needs for inner in self.inner))

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Each term's batch as one of the ``parts``; the rows that any of them has a use for.

        A part's denominator is that of all processes together, the batch's a share of 1.
        """
        batch = replace(batch, row=torch.arange(len(batch), device=batch.group.device))
        parts = [inner.credit(batch) for inner in self.inner]
        totals = [distributed.total(p.denominator, device=batch.group.device) for p in parts]
        kept = torch.unique(torch.cat([batch.positions(part) for part in parts]))
        counters, metrics = dict(batch.counters), dict(batch.metrics)
        for part in reversed(parts):
            # What two terms count, such as identical sides, is one and the same.
            counters |= part.counters
            metrics |= part.metrics
        return replace(
            batch.rows(kept),
            pairs=None,
            coefficient=None,
            pair_weight=None,
            parts=tuple(
                replace(part, trajectory=part.trajectory.bare(), denominator=total)
                for part, total in zip(parts, totals, strict=True)
            ),
            denominator=1 / distributed.world_size() if any(totals) else 0.0,
            counters=counters,
            metrics=metrics,
        )

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over the terms, each divided by its denominator."""
        total = scores.log_probs.new_zeros(())
        metrics: dict[str, Metric] = {}
        for number, (term, part) in enumerate(zip(self.terms, batch.parts, strict=True), 1):
            where = batch.positions(part)
            if len(where) == 0:
                continue
            found = term.objective.loss(_rows(scores, where), part)
            # Where no process has anything for a term, its sum is 0, with a graph.
            scale = term.weight / part.denominator if part.denominator > 0 else 0.0
            total = total + scale * found.total
            label = f"{type(term.objective).__name__}_{number}/"
            metrics |= {
                name if number == 1 and name != "loss" else label + name: value
                for name, value in found.metrics.items()
            }
        return Loss(total=total, metrics=metrics)


def _rows(scores: Scores, index: Tensor) -> Scores:
    """The scores of the rows at ``index``."""
    found: dict[str, Any] = {}
    for field in fields(scores):
        value = getattr(scores, field.name)
        found[field.name] = None if value is None else value[index]
    return Scores(**found)
