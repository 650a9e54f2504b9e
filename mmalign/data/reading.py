"""Rows of a data file as they stand, in TRL's columns: for looking at and for checking.

`mmalign.data.files.File` refuses what is wrong. Here one wrong row is one message, and the next row
is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmalign.data.formats import FORMATS, Row, RowError, detect
from mmalign.data.grouping import grouped
from mmalign.data.opening import open_table
from mmalign.data.rankings import LISTS, PICTURES, RankingRow, ranking_row
from mmalign.data.records import (
    COLUMNS,
    DemonstrationRow,
    Picture,
    PreferenceRow,
    PromptRow,
    demonstration_row,
    preference_row,
    prompt_row,
)

Kind = Literal["preferences", "rankings", "demonstrations", "prompts"]
Parsed = PromptRow | PreferenceRow | RankingRow | DemonstrationRow
CONVERT: Mapping[Kind, Callable[[Row], Parsed]] = {
    "preferences": preference_row,
    "rankings": ranking_row,
    "demonstrations": demonstration_row,
    "prompts": prompt_row,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A data file and how to read it; the fields as in `mmalign.data.File`.

    Attributes:
        path: The file.
        images: The folder that picture paths are relative to; None for the file's own.
        format: Whose columns the file has; auto decides by the first row that can be read.
        columns: The file's name of a column, by ours, where they differ.
    """

    path: Path
    images: Path | None = None
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its pictures are."""
        return self.path.parent if self.images is None else self.images


class Reader:
    """The rows of a file by number, each in TRL's columns.

    Args:
        place: The file.

    Raises:
        ValueError: No such file, or it is unreadable as a whole.
    """

    def __init__(self, place: Place) -> None:
        if place.format != "auto" and place.format not in FORMATS:
            raise ValueError(f"format {place.format!r} is not one of auto, {', '.join(FORMATS)}")
        self.place = place
        self._table = grouped(open_table(place.path), place.format)
        self._format = place.format

    def __len__(self) -> int:
        return len(self._table)

    def where(self, number: int) -> str:
        """The row's place, as messages name it."""
        return self._table.where(number)

    def read(self, number: int) -> Row:
        """The row.

        Raises:
            RowError: It is malformed, or lacks a column that its layout needs.
            Dropped: It is a tie.
        """
        row = self._table.read(number)
        for ours, theirs in self.place.columns.items():
            if theirs not in row:
                raise RowError(
                    "missing column", f"{theirs!r} (`columns.{ours}`) is not among {sorted(row)}"
                )
            row[ours] = row.pop(theirs)
        if self._format == "auto":
            self._format = detect(row)
        return FORMATS[self._format](row)


def kind_of(row: Row) -> Kind:
    """What a row in our columns is: a pair, a list, a prompt with an answer, or a prompt alone."""
    given = {key for key, value in row.items() if value is not None}
    if given & {key for key in COLUMNS if key.startswith(("chosen", "rejected"))}:
        return "preferences"
    if "scores" in given and given & {*LISTS[:1], PICTURES}:
        return "rankings"
    return "demonstrations" if given & {"completion", "completion_images"} else "prompts"


def answers_of(parsed: Parsed) -> list[tuple[str, str | Picture]]:
    """The answers of a row, each with the place where it stands."""
    if isinstance(parsed, PreferenceRow):
        named = [("chosen", parsed.chosen), ("rejected", parsed.rejected)]
    elif isinstance(parsed, DemonstrationRow):
        named = [("completion", parsed.completion)]
    elif isinstance(parsed, RankingRow):
        return [
            (f"{PICTURES if isinstance(one, Picture) else LISTS[0]}[{number}]", one)
            for number, one in enumerate(parsed.completions)
        ]
    else:
        return []
    return [(f"{name}_images" if isinstance(one, Picture) else name, one) for name, one in named]
