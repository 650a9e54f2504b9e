"""Benchmarks: questions with what is true of each, and the arithmetic of the answers.

A benchmark is a small settings object that reads files somebody published. Sampling the answers is
not its business, so that it scores anybody's: it says what is asked, and what answers are worth.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from mmalign import rng
from mmalign.data import images
from mmalign.data.formats import RowError
from mmalign.data.opening import open_table
from mmalign.data.tables import JsonLines, Table
from mmalign.evaluation import half_width
from mmalign.policy import Policy
from mmalign.types import Message, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 5
"""Ids that a message names before it says how many more there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """A picture that is opened when it is looked at.

    Attributes:
        folder: The folder of a benchmark's pictures.
        name: Its path in there.
    """

    folder: str
    name: str

    def open(self) -> Image:
        """The picture, RGB.

        Raises:
            ValueError: It is missing, broken or outside the folder.
        """
        try:
            return images.load(images.inside(Path(self.folder), self.name))
        except ValueError as error:
            raise ValueError(
                f"{self.name}: {error}; the benchmark's `images` is the folder of its pictures"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question of a benchmark. Pictures in files are opened when it is asked.

    Attributes:
        id: Names the question in files of answers; unique in a benchmark.
        text: What is asked.
        images: Pictures, or the files that hold them, in order.
        meta: What is true of it, and its columns.
    """

    id: str
    text: str
    images: tuple[PictureFile | Image, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self) -> Prompt:
        """A user's turn: the pictures, then the text.

        Raises:
            ValueError: A picture is missing or broken.
        """
        parts: list[Message] = [{"type": "image"}] * len(self.images)
        content = ({"role": "user", "content": [*parts, {"type": "text", "text": self.text}]},)
        try:
            opened = tuple(i.open() if isinstance(i, PictureFile) else i for i in self.images)
        except ValueError as error:
            raise ValueError(f"question {self.id}: {error}") from error
        return Prompt(content=content, images=opened, meta=self.meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerDrawing:
    """How a model answers the questions of a benchmark.

    Attributes:
        batch_size: Questions at a time; changes no answer.
        temperature: Divides the logits; 0 for the likeliest answer.
        seed: Of the draws.
    """

    batch_size: int = 32
    temperature: float = 0.0
    seed: int = 0

    def generators(self, items: Sequence[Item]) -> list[torch.Generator]:
        """One for each question, named by its id: what is drawn depends on no other question."""
        return [rng.generator(self.seed, "benchmark", item.id) for item in items]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A number of a report.

    Attributes:
        value: None where it is not defined, such as the precision of an answer never given.
        half_width: Half of the 95 % interval where the number is a mean over questions; else None.
        total: How many things it is a mean or a share of.
    """

    value: float | None
    half_width: float | None = None
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a benchmark says of answers.

    Attributes:
        metrics: By name; the first is the headline.
        categories: The numbers of each category, by its name.
        counts: What a reader should know before believing the numbers: undecidable answers, empty
            ones.
        rows: One mapping a question, for people to look at: its id, the answer, what came of it.
    """

    metrics: Mapping[str, Measured]
    categories: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()

    def record(self) -> dict[str, Any]:
        """Everything but the rows, JSON-serialisable."""
        return {
            "metrics": {name: _record(found) for name, found in self.metrics.items()},
            "categories": {
                category: {name: _record(found) for name, found in numbers.items()}
                for category, numbers in self.categories.items()
            },
            "counts": dict(self.counts),
        }


@runtime_checkable
class Benchmark(Protocol):
    """Settings of a benchmark."""

    @property
    def max_new_tokens(self) -> int:
        """Longest answer that is sampled."""
        ...

    def questions(self) -> Sequence[Item]:
        """What is asked; files of pictures are opened later.

        Raises:
            ValueError: A file is wrong, with its name, row and key.
        """
        ...

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """What the answers are worth, one for each item.

        Raises:
            ValueError: Something that is needed to judge them is missing.
        """
        ...

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """The answers of a file in the benchmark's own format, in the order of the items.

        Raises:
            ValueError: An item has none or two, or an answer belongs to no item.
        """
        ...

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """Write the answers in the benchmark's own format; returns the file."""
        ...


@runtime_checkable
class Probe(Protocol):
    """A benchmark that looks into the model while it answers."""

    def probe(
        self, policy: Policy, items: Sequence[Item], drawing: AnswerDrawing
    ) -> tuple[list[str], Report]:
        """The model's answers to the items, and what was seen while it gave them.

        Raises:
            ValueError: The model is not one that can be looked into.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """How a file of answers is read.

    Attributes:
        id: Columns that may hold the question's id; the first one present does.
        answer: Columns that may hold the answer.
        ordered: Whether a file without ids is one that follows the order of the questions.
        identify: The id of a row, where a column alone is not it.
    """

    id: tuple[str, ...]
    answer: tuple[str, ...]
    ordered: bool = False
    identify: Callable[[Mapping[str, Any], str], str] | None = None

    def read(self, path: Path, items: Sequence[Item]) -> list[str]:
        """The answers, in the order of the items; see `Benchmark.read_answers`."""
        table = open_table(path)
        rows = [read_row(table, number) for number in range(len(table))]
        if self.ordered and not any(key in row for row in rows for key in self.id):
            return self._in_order(table, rows, items)
        found: dict[str, tuple[int, str]] = {}
        for number, row in enumerate(rows):
            name = self._id(row, table.where(number))
            if name in found:
                first = table.where(found[name][0])
                raise ValueError(f"{table.where(number)}: {name} was answered already, at {first}")
            found[name] = (number, self._answer(row, table.where(number)))
        known = [item.id for item in items]
        refuse(path, "answers of no question of the benchmark", found.keys() - set(known))
        refuse(path, "no answer for", set(known) - found.keys())
        return [found[name][1] for name in known]

    def _id(self, row: Mapping[str, Any], where: str) -> str:
        key = first_key(row, self.id, where)
        name = str(row[key])
        return name if self.identify is None else self.identify(row, name)

    def _answer(self, row: Mapping[str, Any], where: str) -> str:
        key = first_key(row, self.answer, where)
        return text_value(row, key, where)

    def _in_order(
        self, table: Table, rows: Sequence[Mapping[str, Any]], items: Sequence[Item]
    ) -> list[str]:
        if len(rows) != len(items):
            raise ValueError(
                f"{table.where(0)}: the file has no ids ({', '.join(self.id)}), so its rows must "
                f"follow the {len(items)} questions, and it has {len(rows)} rows"
            )
        answers = []
        for number, (row, item) in enumerate(zip(rows, items, strict=True)):
            asked = row.get("question")
            if isinstance(asked, str) and item.meta.get("text", item.text).lower() != asked.lower():
                raise ValueError(
                    f"{table.where(number)}: answers {asked!r}, but the question at that place is "
                    f"{item.text!r}"
                )
            answers.append(self._answer(row, table.where(number)))
        return answers


def mean(values: Sequence[float]) -> Measured:
    """The mean over questions with its 95 % interval; not defined where there are none."""
    if not values:
        return Measured(value=None, total=0)
    numbers = torch.tensor(values, dtype=torch.float64)
    half = half_width(numbers)
    return Measured(
        value=float(numbers.mean()),
        half_width=half if math.isfinite(half) else None,
        total=len(values),
    )


def share(part: float, whole: float) -> Measured:
    """``part / whole``, not defined where ``whole`` is 0: a share without an interval."""
    return Measured(value=None if whole == 0 else part / whole, total=int(whole))


def read_rows(path: str | Path, *, lines: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL, JSON or parquet file, each after its place for messages.

    Args:
        path: The file.
        lines: Whether it is a file of lines whatever its ending.

    Raises:
        ValueError: There is no such file, or a row is malformed.
    """
    if lines and not Path(path).is_file():
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})")
    table = JsonLines(Path(path)) if lines else open_table(Path(path))
    return [(table.where(n), read_row(table, n)) for n in range(len(table))]


def read_row(table: Table, number: int) -> dict[str, Any]:
    """A row of a table; a malformed one is an error that names its place."""
    try:
        return dict(table.read(number))
    except RowError as error:
        raise ValueError(f"{table.where(number)}: {error}") from error


def read_json(path: str | Path) -> Any:
    """A JSON file whatever its shape.

    Raises:
        ValueError: There is no such file, or it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def first_key(row: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    """The first of ``keys`` that the row has.

    Raises:
        ValueError: It has none.
    """
    for key in keys:
        if key in row:
            return key
    raise ValueError(f"{where}: lacks {' or '.join(map(repr, keys))}; there are {sorted(row)}")


def text_value(row: Mapping[str, Any], key: str, where: str) -> str:
    """The string in column ``key``.

    Raises:
        ValueError: The row lacks it, or it is no string.
    """
    value = row[first_key(row, [key], where)]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be a string, not {value!r}")
    return value


def unique(items: Sequence[Item], path: str | Path) -> Sequence[Item]:
    """The items, after checking that there are some and that no id stands for two.

    Raises:
        ValueError: There are none, or an id stands for two.
    """
    if not items:
        raise ValueError(f"{path} holds no question")
    counted = Counter(item.id for item in items)
    twice = {name for name, number in counted.items() if number > 1}
    refuse(path, "the id of more than one question", twice)
    return items


def refuse(path: str | Path, what: str, names: set[str]) -> None:
    """Raise an error that names the first of ``names``, if there are any."""
    if names:
        ordered = sorted(names, key=lambda name: (len(name), name))
        more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
        raise ValueError(f"{path}: {what}: {', '.join(ordered[:SHOWN])}{more}")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write one JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    return path


def _record(found: Measured) -> dict[str, Any]:
    record: dict[str, Any] = {"value": found.value, "total": found.total}
    if found.value is not None and found.half_width is not None:
        record["low"] = found.value - found.half_width
        record["high"] = found.value + found.half_width
    return record
