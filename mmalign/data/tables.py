"""Rows of JSONL, JSON and parquet files, one at a time, with the place of each for messages.

Which file is read by what, and the other containers, are in `mmalign.data.opening`.
"""

from __future__ import annotations

import json
from array import array
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from mmalign.data.formats import Row, RowError, short

MAX_LINE_BYTES = 64 * 2**20


class Table(Protocol):
    """Rows by number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Row:
        """A fresh copy of the row.

        Raises:
            RowError: The row is malformed.
        """
        ...

    def column(self, key: str) -> list[Any]:
        """One column of all rows; None where a row lacks it or is malformed."""
        ...

    def where(self, number: int) -> str:
        """The row's place, as messages name it."""
        ...


class JsonLines:
    """A file with one JSON object a line; only where the lines begin is kept in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts = array("Q")
        self.lengths = array("Q")
        self.numbers = array("Q")
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self.starts.append(start)
                    self.lengths.append(len(line))
                    self.numbers.append(number)
                start += len(line)

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, number: int) -> Row:
        """The row at this position among the lines that are not blank."""
        if self.lengths[number] > MAX_LINE_BYTES:
            raise RowError("malformed JSON", f"the line is longer than {MAX_LINE_BYTES} bytes")
        with self.path.open("rb") as file:
            file.seek(self.starts[number])
            return _object(file.read(self.lengths[number]))

    def column(self, key: str) -> list[Any]:
        """One column; None where a row lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """``file:line``."""
        return f"{self.path}:{self.numbers[number]}"


class JsonList:
    """A file with one JSON list of objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            rows = parsed(path.read_bytes())
        except RowError as error:
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(rows, list):
            raise ValueError(f"{path} must hold a list of rows, not {short(rows)}")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Row:
        """The row at this position of the list."""
        return _as_row(self.rows[number])

    def column(self, key: str) -> list[Any]:
        """One column; None where a row lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """``file, row n``, counted from 1."""
        return f"{self.path}, row {number + 1}"


class Parquet:
    """A parquet file, memory-mapped by `datasets`; pictures stay encoded."""

    def __init__(self, path: Path) -> None:
        try:
            from datasets import Dataset
            from pyarrow import default_memory_pool
        except ModuleNotFoundError as error:
            raise ValueError(
                f"reading {path} needs the package datasets: pip install 'mmalign[text]'"
            ) from error

        self.path = path
        try:
            table = Dataset.from_parquet(str(path))
        except Exception as error:
            # Whatever pyarrow makes of a file that is no parquet.
            raise ValueError(f"{path} is not a readable parquet file: {error}") from error
        # What reading a file for the first time took is otherwise kept for the next one.
        default_memory_pool().release_unused()
        # As it is stored: pictures, alone or in lists, would be decoded before they are checked.
        self.table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self.table)

    def read(self, number: int) -> Row:
        """The row at this position; points in time as ISO 8601, as JSON files have them."""
        row: Row = self.table[number].to_pylist()[0]
        return {k: v.isoformat() if isinstance(v, date) else v for k, v in row.items()}

    def column(self, key: str) -> list[Any]:
        """One column, no other one read; None where it is null, or there is no such column."""
        if key not in self.table.column_names:
            return [None] * len(self)
        found: list[Any] = self.table.select_columns([key])[:].column(key).to_pylist()
        return found

    def where(self, number: int) -> str:
        """``file, row n``, counted from 1."""
        return f"{self.path}, row {number + 1}"


def column_of(table: Table, key: str) -> list[Any]:
    """One column, row by row; None where a row lacks it or is malformed."""
    found = []
    for number in range(len(table)):
        try:
            found.append(table.read(number).get(key))
        except RowError:
            found.append(None)
    return found


def parsed(text: bytes) -> Any:
    """Strict JSON: UTF-8, no key twice, no NaN.

    Raises:
        RowError: Otherwise.
    """
    try:
        return json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise RowError("malformed JSON", f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError("malformed JSON", f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RowError("malformed JSON", "nested too deeply") from error


def _object(line: bytes) -> Row:
    return _as_row(parsed(line))


def _as_row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise RowError("wrong type", f"a row must be an object with columns, not {short(value)}")
    return dict(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("malformed JSON", f"the key {twice!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise RowError("malformed JSON", f"{name} is not JSON; write null or a number")
