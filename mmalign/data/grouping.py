"""Rows that are one list in several parts: a picture each, of the same prompt."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

from mmalign.data.formats import Row, RowError, detect, short
from mmalign.data.tables import Table, column_of

GROUPS: Mapping[str, str] = {"image_reward": "prompt_id"}
"""Layouts that have a row a picture, and the column that says which belong together."""
SHARED = ("prompt_id", "prompt", "classification", "image_amount_in_total")
"""What is said once of a list."""


class Grouped:
    """The rows of a table put together, in the order in which lists begin.

    A row of this table has the columns `SHARED` once, and every other one as a list.

    Args:
        table: With a row a picture; a list need not stand in one place.
        key: The column that rows of one list share.
    """

    def __init__(self, table: Table, key: str) -> None:
        self.table, self.key = table, key
        places: dict[Any, array[int]] = {}
        for number, name in enumerate(_keys(table, key)):
            # A row without it stands alone, so that it is named when it is read.
            places.setdefault((number,) if name is None else name, array("Q")).append(number)
        self.members = list(places.values())

    def __len__(self) -> int:
        return len(self.members)

    def read(self, number: int) -> Row:
        """The list, with its pictures in the order of the table."""
        rows = [self.table.read(member) for member in self.members[number]]
        for member, row in zip(self.members[number], rows, strict=True):
            if row.keys() != rows[0].keys() or row.get(self.key) is None:
                raise RowError(
                    "missing column",
                    f"{self.table.where(member)} has the columns {sorted(row)}; it needs "
                    f"{self.key!r} and those of the other rows of its list",
                )
        found: Row = {}
        for column in rows[0]:
            values = [row[column] for row in rows]
            if column in SHARED and any(value != values[0] for value in values):
                raise RowError(
                    "wrong value",
                    f"the rows of {self.key} {short(rows[0][self.key])} differ in {column!r}",
                )
            found[column] = values[0] if column in SHARED else values
        return found

    def column(self, key: str) -> list[Any]:
        """One column; None where a list lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """The place of the list's first row, and how many more it has."""
        more = len(self.members[number]) - 1
        first = self.table.where(self.members[number][0])
        return f"{first} and {more} more of its {self.key}" if more else first


def grouped(table: Table, layout: str) -> Table:
    """The table itself, or its lists where its layout has a row a picture.

    Args:
        table: The rows.
        layout: Name of their layout; "auto" looks at the first row.
    """
    if not len(table):
        return table
    try:
        first = table.read(0)
    except RowError:
        return table  # it is named when it is read for use
    name = detect(first) if layout == "auto" else layout
    key = GROUPS.get(name)
    return Grouped(table, key) if key is not None and key in first else table


def _keys(table: Table, key: str) -> list[Any]:
    """The column ``key``; None where a row lacks it or cannot be read."""
    column = table.column(key)
    return [value if isinstance(value, str | int) else None for value in column]
