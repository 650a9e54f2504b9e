"""A data file as prompts and preferences: everything is checked up front, pictures open late."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar, overload

from PIL.Image import Image

from mmalign import rng
from mmalign.data import images
from mmalign.data.formats import FORMATS, Dropped, FormatName, Row, RowError, detect
from mmalign.data.grouping import grouped
from mmalign.data.opening import open_table
from mmalign.data.rankings import LISTS, RankingRow, ranking_row
from mmalign.data.records import (
    COLUMNS,
    COMPLETIONS,
    LABEL,
    DemonstrationRow,
    Encoded,
    LabelledRow,
    Picture,
    PreferenceRow,
    PromptRow,
    demonstration_row,
    labelled_row,
    preference_row,
    prompt_row,
)
from mmalign.data.tables import Table
from mmalign.types import Labelled, Output, Preference, Prompt, Ranking

_log = logging.getLogger(__name__)

Parsed = TypeVar("Parsed", PromptRow, PreferenceRow, DemonstrationRow, LabelledRow, RankingRow)
Record = TypeVar("Record", Prompt, Preference, tuple[Prompt, Output], Labelled, Ranking)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A JSONL, JSON or parquet file, a tar shard, a folder of pictures, or a pattern of several.

    Rows have the columns ``prompt``, ``chosen``, ``rejected`` (strings or conversations),
    ``images``, ``chosen_images``, ``rejected_images`` and ``margin``; see `mmalign.data.records`.

    Attributes:
        path: The file or folder; a pattern such as ``train-*.parquet`` or ``{000..012}.tar`` reads
            several as one.
        images: The folder that picture paths are relative to and may not leave; None for the
            file's own.
        format: Whose columns the file has; auto decides by the first row.
        columns: The file's name of a column, by ours, where they differ.
        split: A share of the rows, drawn by a hash of the prompt with its picture paths, so that
            rows of one prompt are never in both; or all of them.
        heldout_share: Share of the prompts that are held out, where ``split`` is not all.
        max_rows: Use the first so many usable rows.
        on_error: Whether a bad row stops the run, or is skipped and counted. Skipping decodes every
            picture up front; otherwise only headers are read then.
    """

    path: str
    images: str | None = None
    format: FormatName = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    split: Literal["all", "train", "heldout"] = "all"
    heldout_share: float = 0.1
    max_rows: int | None = None
    on_error: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        known = (*COLUMNS, *COMPLETIONS, LABEL, *LISTS)
        unknown = sorted(self.columns.keys() - set(known))
        if unknown:
            raise ValueError(f"columns names {unknown[0]!r}; known are {', '.join(known)}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows={self.max_rows} must be at least 1, or null for all")
        if not 0 < self.heldout_share < 1:
            raise ValueError(f"heldout_share={self.heldout_share} must lie between 0 and 1")

    def preferences(self) -> Rows[PreferenceRow, Preference]:
        """The recorded pairs.

        Raises:
            ValueError: A row is wrong (unless skipped), or none is usable.
        """
        return self._rows(preference_row, _opened_preference)

    def prompts(self) -> Rows[PromptRow, Prompt]:
        """The prompts alone, one a row; answers are neither needed nor looked at.

        Raises:
            ValueError: A row is wrong (unless skipped), or none is usable.
        """
        return self._rows(prompt_row, _opened_prompt)

    def demonstrations(self) -> Rows[DemonstrationRow, tuple[Prompt, Output]]:
        """The prompts with the answers in the column ``completion`` or ``completion_images``.

        Raises:
            ValueError: A row is wrong (unless skipped), or none is usable.
        """
        return self._rows(demonstration_row, _opened_demonstration)

    def unpaired(self) -> Rows[LabelledRow, Labelled]:
        """The outputs in ``completion`` or ``completion_images``, each with its ``label``.

        Raises:
            ValueError: A row is wrong (unless skipped), or none is usable.
        """
        return self._rows(labelled_row, _opened_labelled)

    def rankings(self) -> Rows[RankingRow, Ranking]:
        """The lists in ``completions`` or ``completion_images``, with their ``scores``.

        Raises:
            ValueError: A row is wrong (unless skipped), or none is usable.
        """
        return self._rows(ranking_row, _opened_ranking)

    def _rows(
        self, convert: Callable[[Row], Parsed], opened: Callable[[Parsed, Path], Record]
    ) -> Rows[Parsed, Record]:
        path = Path(self.path)
        rows = Rows(
            settings=self,
            table=grouped(open_table(path), self.format),
            folder=path.parent if self.images is None else Path(self.images),
            convert=convert,
            opened=opened,
        )
        rows.check()
        return rows


class Rows(Sequence[Record], Generic[Parsed, Record]):
    """The usable rows of a file; a row is read, and its pictures decoded, when it is asked for.

    Attributes:
        dropped: How many rows were left out, by reason.
    """

    def __init__(
        self,
        *,
        settings: File,
        table: Table,
        folder: Path,
        convert: Callable[[Row], Parsed],
        opened: Callable[[Parsed, Path], Record],
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._settings, self._table, self._folder = settings, table, folder
        self._convert: Callable[[Row], Parsed] = convert
        self._opened: Callable[[Parsed, Path], Record] = opened
        self._numbers = array("Q")
        self._format: str = settings.format
        self._seen: set[str] = set()

    def check(self) -> None:
        """Find the usable rows.

        Raises:
            ValueError: Naming file, row, column and what to do.
        """
        limit = self._settings.max_rows
        for number in range(len(self._table)):
            if limit is not None and len(self._numbers) == limit:
                break
            try:
                if self._usable(number):
                    self._numbers.append(number)
            except Dropped as reason:
                self.dropped[reason.reason] += 1
            except RowError as error:
                if self._settings.on_error == "error":
                    raise ValueError(f"{self._table.where(number)}: {error}") from error
                if not self.dropped[error.reason]:
                    _log.warning("skipped %s: %s", self._table.where(number), error)
                self.dropped[error.reason] += 1
        self._seen.clear()
        self._report()

    def _report(self) -> None:
        path = self._settings.path
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        if counts:
            _log.warning("%s: %d rows used; left out: %s", path, len(self._numbers), counts)
        if not self._numbers:
            raise ValueError(
                f"{path} has no usable row (split {self._settings.split}); left out: "
                f"{counts or 'nothing'}, of {len(self._table)}"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        """A record, its pictures decoded.

        Raises:
            ValueError: A picture is broken below its header, or the file has changed.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self._numbers[index]
        try:
            return self._opened(self._parsed(number), self._folder)
        except (ValueError, Dropped) as error:
            raise ValueError(f"{self._table.where(number)}: {error}") from error

    def where(self, number: int) -> str:
        """File and line of a usable row."""
        return self._table.where(self._numbers[number])

    def parsed(self) -> Iterator[Parsed]:
        """Every usable row, its pictures not opened."""
        return (self._parsed(number) for number in self._numbers)

    def _parsed(self, number: int) -> Parsed:
        row = self._table.read(number)
        for ours, theirs in self._settings.columns.items():
            if theirs not in row:
                raise RowError(
                    "missing column", f"{theirs!r} (`columns.{ours}`) is not among {sorted(row)}"
                )
            row[ours] = row.pop(theirs)
        if self._format == "auto":
            self._format = detect(row)
        return self._convert(FORMATS[self._format](row))

    def _usable(self, number: int) -> bool:
        parsed = self._parsed(number)
        if not self._in_split(parsed if isinstance(parsed, PromptRow) else parsed.prompt):
            return False
        for picture in parsed.pictures:
            self._check_picture(picture)
        return True

    def _in_split(self, prompt: PromptRow) -> bool:
        split = self._settings.split
        if split == "all":
            return True
        paths = [image for image in prompt.images if isinstance(image, str)]
        draw = rng.python_random("split", repr(prompt.content), *paths).random()
        return (draw < self._settings.heldout_share) == (split == "heldout")

    def _check_picture(self, picture: Encoded) -> None:
        if isinstance(picture, str) and picture in self._seen:
            return
        decode = self._settings.on_error == "skip"
        try:
            where = _located(picture, self._folder)
        except ValueError as error:
            raise RowError("missing image", str(error)) from error
        try:
            images.check(where, decode=decode)
        except ValueError as error:
            raise RowError("broken image", f"{_named(picture)}: {error}") from error
        if isinstance(picture, str):
            self._seen.add(picture)


def _opened_prompt(row: PromptRow, folder: Path) -> Prompt:
    pictures = tuple(_decoded(image, folder) for image in row.images)
    return Prompt(content=row.content, images=pictures, meta=row.meta)


def _opened_preference(row: PreferenceRow, folder: Path) -> Preference:
    other = row.rejected_prompt
    return Preference(
        prompt=_opened_prompt(row.prompt, folder),
        chosen=_opened_answer(row.chosen, folder),
        rejected=_opened_answer(row.rejected, folder),
        rejected_prompt=None if other is None else _opened_prompt(other, folder),
        margin=row.margin,
        meta=row.prompt.meta,
    )


def _opened_demonstration(row: DemonstrationRow, folder: Path) -> tuple[Prompt, Output]:
    return _opened_prompt(row.prompt, folder), _opened_answer(row.completion, folder)


def _opened_labelled(row: LabelledRow, folder: Path) -> Labelled:
    return Labelled(
        prompt=_opened_prompt(row.prompt, folder),
        completion=_opened_answer(row.completion, folder),
        label=row.label,
    )


def _opened_ranking(row: RankingRow, folder: Path) -> Ranking:
    return Ranking(
        prompt=_opened_prompt(row.prompt, folder),
        completions=tuple(_opened_answer(one, folder) for one in row.completions),
        scores=row.scores,
        steps=row.steps,
    )


def _opened_answer(answer: str | Picture, folder: Path) -> Output:
    if not isinstance(answer, Picture):
        return answer
    frames = tuple(_decoded(frame, folder) for frame in answer.frames)
    return frames[0] if len(frames) == 1 else frames


def _decoded(picture: Encoded, folder: Path) -> Image:
    try:
        return images.load(_located(picture, folder))
    except ValueError as error:
        raise ValueError(f"{_named(picture)}: {error}") from error


def _located(picture: Encoded, folder: Path) -> images.Picture:
    return picture if isinstance(picture, bytes) else images.inside(folder, picture)


def _named(picture: Encoded) -> str:
    return "a picture in the file" if isinstance(picture, bytes) else repr(picture)
