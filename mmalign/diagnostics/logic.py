"""A preference loss as a statement about a pair, and the way back by weighted model counting.

A loss ``-log sigmoid(beta log rho)`` compares two probabilities. Each is that of a formula over the
events of `formulas`, whose atoms are independent: its *weighted model count*, the sum over the rows
of its truth table of the products of ``p`` or ``1 - p``. Three formulas make a statement: what is
preferred (P), under which condition (C), and what counts for both sides (A)::

    right = (P or A) and C      wrong = (not P or A) and C      rho = count(right) / count(wrong)

So DPO says "where the reference favours the chosen side and the policy the rejected one, it should
be the other way round", and counts the rows where both hold twice.

References:
    2412.17696.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.diagnostics import formulas
from mmalign.functional.stable import log1mexp

POLICY_ATOMS = 2
SHORT = ("pw", "pl", "rw", "rl")
"""The probabilities of `formulas.ATOMS`, as they are printed."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Which rows of the truth table speak for the preference, and which against it.

    Attributes:
        right: Truth table of the numerator of rho.
        wrong: Truth table of the denominator.
    """

    right: int
    wrong: int

    def __post_init__(self) -> None:
        for name, table in (("for", self.right), ("against", self.wrong)):
            if table == 0:
                raise ValueError(
                    f"no row of the truth table counts {name} the preference, so rho has no "
                    "logarithm: the condition excludes too much"
                )

    @property
    def atoms(self) -> list[int]:
        """The atoms that rho depends on, indices of `formulas.ATOMS`."""
        return sorted({*formulas.essential(self.right), *formulas.essential(self.wrong)})

    @property
    def reads_reference(self) -> bool:
        """Whether rho depends on the reference."""
        return any(i >= POLICY_ATOMS for i in self.atoms)

    @property
    def reads_complements(self) -> bool:
        """Whether rho has a factor ``1 - p`` of the policy."""
        return any(
            not row >> i & 1
            for table in (self.right, self.wrong)
            for row in _reduced(table)
            for i in formulas.essential(table)
            if i < POLICY_ATOMS
        )

    def entails(self, other: Structure) -> bool:
        """Whether what speaks for this one speaks for the other, and against likewise, reversed.

        Counts only grow with rows, so this one's rho is then at most the other's and its loss, at
        one beta, at least the other's, whatever the probabilities are.
        """
        return self.right & ~other.right == 0 and other.wrong & ~self.wrong == 0

    def against_reference(self) -> Structure:
        """The structure whose rho is this one's over the same rho of the reference.

        Raises:
            ValueError: This one reads the reference already.
        """
        if self.reads_reference:
            raise ValueError("the structure reads the reference already")
        right, wrong = (_of_reference(table) for table in (self.right, self.wrong))
        return Structure(self.right & wrong, self.wrong & right)

    def log_ratio(self, log_probs: Sequence[Tensor | None]) -> Tensor:
        """``log rho``, nats.

        Args:
            log_probs: Of the four atoms, each ``[N]`` nats, at most 0; None where it is not read.

        Returns:
            ``[N]``; 0 where the counts of both sides are equal.
        """
        return log_count(self.right, log_probs) - log_count(self.wrong, log_probs)

    def loss(self, log_probs: Sequence[Tensor | None], *, beta: float) -> Tensor:
        """``-log sigmoid(beta log rho)``: ``[N]``, log 2 where the two counts are equal."""
        return -logsigmoid(beta * self.log_ratio(log_probs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The three formulas of a structure; see the module.

    Attributes:
        proposition: P, what is preferred.
        condition: C, which rows count at all.
        ambiguous: A, which rows count for both sides.
    """

    proposition: str
    condition: str = "true"
    ambiguous: str = "false"

    def structure(self) -> Structure:
        """Its rows.

        Raises:
            ValueError: A formula is wrong, or no row speaks for, or against, the preference.
        """
        p, c, a = map(formulas.parse, (self.proposition, self.condition, self.ambiguous))
        return Structure(right=(p | a) & c, wrong=(~p | a) & c)


Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A loss of `mmalign.objectives` in symbolic form.

    Attributes:
        statement: Name in `STATEMENTS` of what it says.
        reduction: Which log-prob of an output its probabilities are: the sum over steps, or the
            mean, whose exponential is the geometric mean probability of a step.
        outer: The loss as a function of rho.
    """

    statement: str
    reduction: Reduction = "sum"
    outer: str = "-log sigmoid(beta log rho)"


STATEMENTS: Mapping[str, Statement] = {
    "likelihood": Statement(proposition="M(w)"),
    "unlikelihood": Statement(proposition="M(w) and not M(l)"),
    "cpo": Statement(
        proposition="M(l) -> M(w)", condition="M(w) or M(l)", ambiguous="M(w) and M(l)"
    ),
    "orpo": Statement(proposition="M(l) -> M(w)", condition="not (M(w) <-> M(l))"),
    "conditional": Statement(proposition="M(l) -> M(w)", condition="M(w) or M(l)"),
    "unconditional": Statement(proposition="M(l) -> M(w)"),
    "dpo": Statement(
        proposition="(R(w) and M(l)) -> (R(l) and M(w))",
        condition="(R(w) and M(l)) or (R(l) and M(w))",
        ambiguous="(R(w) and M(l)) and (R(l) and M(w))",
    ),
}
"""The structures that have a name here, ``conditional`` and ``unconditional`` being our names."""

_NLL = " plus the chosen side's cross-entropy"
FORMS: Mapping[str, Form] = {
    "sft": Form(statement="likelihood", outer="-log sigmoid(log rho), which is -log pw"),
    "dpo": Form(statement="dpo"),
    "dpo_sft": Form(statement="dpo", outer=f"-log sigmoid(beta log rho){_NLL}"),
    "cdpo_smoothing": Form(
        statement="dpo",
        outer="-(1 - e) log sigmoid(beta log rho) - e log sigmoid(-beta log rho)",
    ),
    "rdpo": Form(
        statement="dpo",
        outer="(-(1 - e) log sigmoid(beta log rho) + e log sigmoid(-beta log rho)) / (1 - 2 e)",
    ),
    "ln_dpo": Form(statement="dpo", reduction="mean"),
    "ipo": Form(statement="dpo", reduction="mean", outer="(log rho - 1 / (2 beta))^2"),
    "hinge": Form(statement="dpo", outer="max(0, 1 - beta log rho)"),
    "exo_pair": Form(
        statement="dpo", outer="KL of (q, 1 - q) to (1 - e, e) with q = sigmoid(beta log rho)"
    ),
    "discopop": Form(
        statement="dpo",
        outer="-log sigmoid(z) (1 - m) + exp(-z) m with z = beta log rho, m = sigmoid(z / tau)",
    ),
    "cpo": Form(statement="cpo", outer=f"-log sigmoid(beta log rho){_NLL}"),
    "simpo": Form(statement="cpo", reduction="mean", outer="-log sigmoid(beta log rho - gamma)"),
    "orpo": Form(
        statement="orpo",
        reduction="mean",
        outer=f"-beta log sigmoid(log rho){_NLL}",
    ),
}
"""Losses that are a function of one rho. The others sum several terms of each side."""


def log_count(table: int, log_probs: Sequence[Tensor | None]) -> Tensor:
    """The logarithm of a weighted model count: ``log sum_rows prod_atoms (p or 1 - p)``.

    Atoms that make no difference to the table are summed out exactly, so that DPO's counts are
    products and nothing is lost to rounding.

    Args:
        table: A truth table.
        log_probs: Of the four atoms, each ``[N]`` nats, at most 0; None where the table does not
            depend on it.

    Returns:
        ``[N]`` nats, at most 0; 0 for a formula that always holds.
    """
    kept = formulas.essential(table)
    given = {i: log_probs[i] for i in kept}
    terms = []
    for row in _reduced(table):
        factors = []
        for i, log_p in given.items():
            assert log_p is not None, f"{formulas.ATOMS[i]} is read and not given"
            factors.append(log_p if row >> i & 1 else log1mexp(log_p))
        if factors:
            terms.append(torch.stack(factors).sum(0))
    if terms:
        return torch.stack(terms).logsumexp(0)
    some = next(log_p for log_p in log_probs if log_p is not None)
    return torch.zeros_like(some)


def written(structure: Structure) -> str:
    """Rho in the letters of `SHORT`, such as ``pw rl / (pl rw)``."""
    numerator, denominator = _sum_of(structure.right), _sum_of(structure.wrong)
    return f"{_grouped(numerator, sums=True)} / {_grouped(denominator, sums=False)}"


def _reduced(table: int) -> list[int]:
    """The rows of a table in which atoms that make no difference are False."""
    other = sum(1 << i for i in range(len(formulas.ATOMS)) if i not in formulas.essential(table))
    return [row for row in formulas.rows_of(table) if not row & other]


def _of_reference(table: int) -> int:
    """The same formula about the reference."""
    rows = [r for r in range(formulas.ROWS) if table >> (r >> POLICY_ATOMS) & 1]
    return formulas.table_of(rows)


def _sum_of(table: int) -> str:
    kept, rows = formulas.essential(table), _reduced(table)
    if not kept:
        return "1"
    if 2 * len(rows) > 1 << len(kept):
        return f"1 - {_grouped(_sum_of(formulas.TRUE & ~table), sums=True)}"
    return " + ".join(_product_of(row, kept) for row in rows)


def _product_of(row: int, kept: Sequence[int]) -> str:
    """The factors p before the factors 1 - p."""
    plain = [SHORT[i] for i in kept if row >> i & 1]
    return " ".join(plain + [f"(1 - {SHORT[i]})" for i in kept if not row >> i & 1])


def _grouped(text: str, *, sums: bool) -> str:
    """In brackets where it is a sum, and unless ``sums`` where it is a product."""
    bare = text
    for name in SHORT:
        bare = bare.replace(f"(1 - {name})", "q")
    needs = any(sign in bare for sign in (("+", "-") if sums else ("+", "-", " ")))
    return f"({text})" if needs else text
