"""Which of two losses asks for more: by entailment, and by their counts for every probability."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.diagnostics import formulas
from mmalign.diagnostics.logic import POLICY_ATOMS, Structure

Relation = Literal["equal", "first", "second", "neither"]
"""Whether one entails the other: ``first`` where the first entails the second."""
Order = Literal["equal", "first", "second", "either", "unknown"]
"""Whose loss is never the smaller one; ``either`` where that depends on the probabilities."""

GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Probabilities of each atom that are tried where the coefficients alone do not decide."""
CLEAR = 1e-9
"""Differences of log rho below this are rounding."""

Polynomial = Counter[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Probabilities at which two losses differ.

    Attributes:
        probabilities: Of the atoms of `formulas.ATOMS`.
        log_ratios: ``log rho`` of the first and of the second, nats.
    """

    probabilities: tuple[float, ...]
    log_ratios: tuple[float, float]

    def losses(self, beta: float) -> tuple[float, float]:
        """``-log sigmoid(beta log rho)`` of both, nats."""
        first, second = (math.log1p(math.exp(-beta * z)) for z in self.log_ratios)
        return first, second


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How two structures relate.

    Attributes:
        entailment: On truth tables.
        order: Of the losses ``-log sigmoid(beta log rho)`` at one beta, for all probabilities.
        flat: The order where the reference finds both sides equally likely, by a probability of
            one half; None where neither reads a reference.
        examples: Where the order is "either" or "unknown", the clearest case found of a larger
            first loss, and of a larger second one.
    """

    entailment: Relation
    order: Order
    flat: Order | None
    examples: tuple[Example, ...]


def compare(first: Structure, second: Structure) -> Comparison:
    """How two structures relate.

    Entailment gives the order; the converse does not hold, since different rows can have equal
    counts. The order is therefore read from the polynomials themselves: with odds ``o = p / (1 -
    p)``, ``count(right 2) count(wrong 1) - count(right 1) count(wrong 2)`` is, up to a positive
    factor, a polynomial in odds with whole coefficients. Where none is negative the first's rho is
    never the larger. Where the signs are mixed, probabilities of `GRID` are tried.
    """
    down, up = first.entails(second), second.entails(first)
    relation: Relation = "equal" if down and up else "first" if down else "second"
    if not down and not up:
        relation = "neither"
    order = _order(first, second, flat=False)
    reads = first.reads_reference or second.reads_reference
    examples = _examples(first, second) if order in ("either", "unknown") else []
    return Comparison(
        entailment=relation,
        order=order,
        flat=_order(first, second, flat=True) if reads else None,
        examples=tuple(examples),
    )


def _order(first: Structure, second: Structure, *, flat: bool) -> Order:
    difference = _product(second.right, first.wrong, flat=flat)
    difference.subtract(_product(first.right, second.wrong, flat=flat))
    signs = {math.copysign(1, c) for c in difference.values() if c}
    if not signs:
        return "equal"
    if len(signs) == 1:
        return "first" if 1 in signs else "second"
    found = len(_examples(first, second, flat=flat))
    return "either" if found == 2 else "unknown"


def _product(one: int, other: int, *, flat: bool) -> Polynomial:
    """The product of two counts as exponents of the odds; ``flat`` sets the reference's odds to 1.

    A row is worth the product of the odds of its true atoms, times what all rows share.
    """
    kept = POLICY_ATOMS if flat else len(formulas.ATOMS)
    found: Polynomial = Counter()
    for a, b in itertools.product(formulas.rows_of(one), formulas.rows_of(other)):
        found[tuple((a >> i & 1) + (b >> i & 1) for i in range(kept))] += 1
    return found


def _examples(first: Structure, second: Structure, *, flat: bool = False) -> list[Example]:
    """The grid's largest gap in each direction: a larger first loss, then a larger second one."""
    atoms = {*first.atoms, *second.atoms}
    choices = [
        GRID if i in atoms and not (flat and i >= POLICY_ATOMS) else (0.5,)
        for i in range(len(formulas.ATOMS))
    ]
    tried = []
    for probabilities in itertools.product(*choices):
        ratios = (_log_ratio(first, probabilities), _log_ratio(second, probabilities))
        tried.append(Example(probabilities=probabilities, log_ratios=ratios))
    gaps = [e.log_ratios[1] - e.log_ratios[0] for e in tried]
    ends = (max(gaps), min(gaps))
    found = [tried[gaps.index(gap)] for gap in ends]
    return [e for e, gap, sign in zip(found, ends, (1, -1), strict=True) if sign * gap > CLEAR]


def _log_ratio(structure: Structure, probabilities: Sequence[float]) -> float:
    counts = [
        math.fsum(
            math.prod(p if row >> i & 1 else 1 - p for i, p in enumerate(probabilities))
            for row in formulas.rows_of(table)
        )
        for table in (structure.right, structure.wrong)
    ]
    return math.log(counts[0]) - math.log(counts[1])
