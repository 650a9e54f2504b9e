"""Pairs of pictures in folders: one folder a prompt, or one folder with ``metadata.jsonl``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.data.formats import Row, RowError
from mmalign.data.members import row_of
from mmalign.data.tables import JsonLines, column_of

METADATA = "metadata.jsonl"
FILE_NAME = "file_name"


class Folders:
    """A folder of folders, each a row: ``prompt.txt``, ``chosen.png``, ``rejected.png``.

    What a file is called says what it is, as in `mmalign.data.members`; ``columns.json`` holds
    further columns. Names that begin with a dot are passed over. Rows are in the order of names.

    Raises:
        ValueError: There is something beside the folders, or nothing at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = []
        for entry in sorted(path.iterdir()):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                raise ValueError(
                    f"{entry} stands beside the folders of the rows; a folder of data has one "
                    f"folder a row, or {METADATA} with the pictures beside it"
                )
            self.names.append(entry.name)
        if not self.names:
            raise ValueError(f"the folder {path} holds no row: neither folders nor {METADATA}")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> Row:
        """The row of the folder at this position."""
        folder = self.path / self.names[number]
        inside = Path(self.path.name, folder.name)
        members: dict[str, Callable[[], Any]] = {}
        for entry in folder.iterdir():
            if entry.name.startswith("."):
                continue
            if not entry.is_file():
                raise RowError("unread member", f"{entry.name!r} is no file")
            name = "json" if entry.name == "columns.json" else entry.name
            members[name] = entry.read_bytes
        return row_of(members, picture=lambda part: str(inside / part))

    def column(self, key: str) -> list[Any]:
        """One column; None where a row lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """The folder."""
        return str(self.path / self.names[number])


class MetadataFolder:
    """A folder of pictures with a ``metadata.jsonl``, as the imagefolder of `datasets` has it.

    ``NAME_file_name`` (a path) and ``NAME_file_names`` (a list of them) become the column
    ``NAME_images``; ``file_name`` alone is the picture of the answer, ``completion_images``. Paths
    begin at the folder.

    Raises:
        ValueError: As `mmalign.data.tables.JsonLines`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = JsonLines(path / METADATA)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Row:
        """The row of the line at this position."""
        found: Row = {}
        for key, value in self.rows.read(number).items():
            name = key.removesuffix("s").removesuffix(FILE_NAME)
            column = key
            if name != key.removesuffix("s") and value is not None:
                column = f"{name.removesuffix('_') or 'completion'}_images"
                column = "images" if column == "image_images" else column
                value = [self._path(one, key) for one in _listed(value)]
            if column in found:
                raise RowError("wrong value", f"{key!r} gives the column {column!r} a second time")
            found[column] = value
        return found

    def _path(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise RowError("wrong type", f"{key!r} must hold paths, not {value!r}")
        return str(Path(self.path.name, value))

    def column(self, key: str) -> list[Any]:
        """One column; None where a row lacks it or is malformed."""
        return column_of(self, key)

    def where(self, number: int) -> str:
        """``file:line``."""
        return self.rows.where(number)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
