"""Formulas about a pair, as truth tables.

The four atoms are events, taken to be independent of each other:

    M(w), M(l)   the policy produces the chosen (w) or the rejected (l) output
    R(w), R(l)   the reference does

A formula joins them by ``not``, ``and``, ``or``, ``->`` and ``<->`` (or ``~``, ``&``, ``|``), which
bind in this order; ``->`` groups to the right. ``true`` and ``false`` are formulas. A truth table
is an int of 16 bits: bit r says whether the formula holds in row r, where bit i of r is the value
of atom i.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

ATOMS = ("M(w)", "M(l)", "R(w)", "R(l)")
ROWS = 1 << len(ATOMS)
TRUE = (1 << ROWS) - 1
_TOKEN = re.compile(r"\s*(?:([MR])\s*\(\s*([wl])\s*\)|(<->|->|[~&|()])|([A-Za-z]+))")
_WORDS = {"not": "~", "and": "&", "or": "|"}


def rows_of(table: int) -> list[int]:
    """The rows in which ``table`` holds, ascending."""
    return [row for row in range(ROWS) if table >> row & 1]


def table_of(rows: Sequence[int]) -> int:
    """The table that holds in ``rows`` alone."""
    return sum(1 << row for row in set(rows))


def atom(index: int) -> int:
    """The table of atom ``index`` of `ATOMS`."""
    return table_of([row for row in range(ROWS) if row >> index & 1])


def essential(table: int) -> list[int]:
    """The atoms (indices) whose value makes a difference to ``table``."""
    return [
        i
        for i in range(len(ATOMS))
        if any((table >> row & 1) != (table >> (row ^ 1 << i) & 1) for row in range(ROWS))
    ]


def parse(formula: str) -> int:
    """The truth table of a formula: ``TRUE`` for ``"true"``, 0 for ``"false"``.

    Raises:
        ValueError: It is no formula; the message says where.
    """
    reader = _Reader(formula)
    found = reader.equivalence()
    if reader.next is not None:
        raise reader.refusal(f"{reader.next!r} is not expected")
    return found


class _Reader:
    """Recursive descent, one method a level of binding."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.tokens = _tokens(formula)
        self.position = 0

    @property
    def next(self) -> str | None:
        """The token to be read, or None at the end."""
        return self.tokens[self.position][0] if self.position < len(self.tokens) else None

    def refusal(self, what: str) -> ValueError:
        """The error about the token to be read."""
        done = self.position >= len(self.tokens)
        column = len(self.formula) if done else self.tokens[self.position][1]
        return ValueError(f"formula {self.formula!r}, column {column + 1}: {what}")

    def take(self, token: str) -> bool:
        """Whether ``token`` is next; if so it is read."""
        if self.next != token:
            return False
        self.position += 1
        return True

    def equivalence(self) -> int:
        left = self.implication()
        while self.take("<->"):
            left = TRUE & ~(left ^ self.implication())
        return left

    def implication(self) -> int:
        left = self.either()
        return (TRUE & ~left) | self.implication() if self.take("->") else left

    def either(self) -> int:
        return self._chain("|", self.both, lambda a, b: a | b)

    def both(self) -> int:
        return self._chain("&", self.negation, lambda a, b: a & b)

    def negation(self) -> int:
        return TRUE & ~self.negation() if self.take("~") else self.single()

    def single(self) -> int:
        if self.take("("):
            inner = self.equivalence()
            if not self.take(")"):
                raise self.refusal("')' is missing")
            return inner
        constants = {"true": TRUE, "false": 0, **{name: atom(i) for i, name in enumerate(ATOMS)}}
        if self.next not in constants:
            raise self.refusal(f"expected 'not', '(', 'true', 'false' or one of {', '.join(ATOMS)}")
        found = constants[self.next]
        self.position += 1
        return found

    def _chain(self, token: str, inner: Callable[[], int], join: Callable[[int, int], int]) -> int:
        left = inner()
        while self.take(token):
            left = join(left, inner())
        return left


def _tokens(formula: str) -> list[tuple[str, int]]:
    """(token, column from 0) each."""
    found, position = [], 0
    text = formula.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            column = position + len(text[position:]) - len(text[position:].lstrip())
            raise ValueError(
                f"formula {formula!r}, column {column + 1}: {text[column]!r} is not expected"
            )
        kind, side, sign, word = match.groups()
        token = f"{kind}({side})" if kind else sign or _WORDS.get(word, word)
        found.append((token, match.end() - len(match.group().lstrip())))
        position = match.end()
    return found
