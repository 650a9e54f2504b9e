"""Tar shards in the layout of WebDataset, read by row; and several files read as one."""

from __future__ import annotations

import tarfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmalign.data.formats import Row, RowError
from mmalign.data.members import MAX_MEMBER_BYTES, row_of
from mmalign.data.tables import Table, column_of


class TarShard:
    """A tar file whose members with one stem are a row, as WebDataset writes it.

    The stem is the path up to the first dot of the file's name; the members of a row stand one
    after the other. Only where they lie is kept in memory, some 200 bytes a row; nothing is
    unpacked to disk.

    Raises:
        ValueError: The file is no uncompressed tar or is cut short, a member is a link or a device,
            or a stem comes back after another; naming the member.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stems: list[str] = []
        self.first = array("Q", [0])  # of each row's members, and one past the last
        self.starts, self.sizes = array("Q"), array("Q")
        self.parts: list[str] = []
        names: dict[str, str] = {}  # each part once, however many rows have it
        size = path.stat().st_size
        try:
            with tarfile.open(path, "r:") as file:
                while (member := file.next()) is not None:
                    # Else the module keeps every one of them; its stubs do not know the list.
                    file.members = []  # type: ignore[attr-defined]
                    if not member.isdir():
                        self._add(member, size, names)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path} is not a whole, uncompressed tar file: {error}") from error
        if self.stems:
            self.first.append(len(self.starts))
        if len(set(self.stems)) < len(self.stems):
            twice = next(stem for stem, number in Counter(self.stems).items() if number > 1)
            raise ValueError(
                f"{path}: the members of the sample {twice!r} do not stand one after the other"
            )

    def _add(self, member: tarfile.TarInfo, size: int, names: dict[str, str]) -> None:
        if not member.isreg():
            raise ValueError(f"{self.path}: member {member.name!r} is a link or a device")
        if member.offset_data + member.size > size:
            raise ValueError(f"{self.path} is cut short in its member {member.name!r}")
        folder, slash, name = member.name.rpartition("/")
        base, _, part = name.partition(".")
        stem = f"{folder}{slash}{base}"
        if not self.stems or self.stems[-1] != stem:
            if self.stems:
                self.first.append(len(self.starts))
            self.stems.append(stem)
        self.starts.append(member.offset_data)
        self.sizes.append(member.size)
        self.parts.append(names.setdefault(part, part))

    def __len__(self) -> int:
        return len(self.stems)

    def read(self, number: int) -> Row:
        """The row of the members with the stem at this position."""
        members: dict[str, Callable[[], Any]] = {}
        for index in range(self.first[number], self.first[number + 1]):
            part = self.parts[index]
            if part in members:
                raise RowError("wrong value", f"the member {part!r} stands there twice")
            members[part] = partial(self._bytes, index)
        return row_of(members, picture=lambda part: members[part]())

    def _bytes(self, index: int) -> bytes:
        part, size = self.parts[index], self.sizes[index]
        if size > MAX_MEMBER_BYTES:
            raise RowError(
                "wrong value", f"the member {part!r} is longer than {MAX_MEMBER_BYTES} bytes"
            )
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return file.read(size)

    def column(self, key: str) -> list[Any]:
        """One column; None where a row lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """``shard, sample STEM``."""
        return f"{self.path}, sample {self.stems[number]!r}"


class Chain:
    """The rows of several tables, one table after the other.

    Args:
        tables: At least one.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.ends = list(accumulate(len(table) for table in tables))

    def __len__(self) -> int:
        return self.ends[-1]

    def _at(self, number: int) -> tuple[Table, int]:
        table = bisect_right(self.ends, number)
        return self.tables[table], number - (self.ends[table - 1] if table else 0)

    def read(self, number: int) -> Row:
        """The row at this position of all."""
        table, at = self._at(number)
        return table.read(at)

    def column(self, key: str) -> list[Any]:
        """One column of all."""
        return [value for table in self.tables for value in table.column(key)]

    def where(self, number: int) -> str:
        """The row's place in its own table."""
        table, at = self._at(number)
        return table.where(at)
