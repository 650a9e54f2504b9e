"""Accuracy on questions about several pictures, by matching short answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.benchmarks import (
    AnswerFormat,
    Item,
    Measured,
    PictureFile,
    Report,
    first_key,
    mean,
    read_rows,
    text_value,
    unique,
    write_lines,
)

Match = Literal["exact", "contained"]
EVERYTHING = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiImage:
    """The share of right answers to the questions of a file, whole and by category.

    A row has ``prompt``, ``images`` (a list of files), ``answer`` (a string, or a list of strings
    each of which is right), and optionally ``id`` (else its number from 0) and ``category``.

    Attributes:
        path: A JSONL, JSON or parquet file.
        images: The folder of the pictures; not needed to score answers.
        match: Whether the answer must be the right one word for word, or contain its words in a
            row. Case and punctuation do not matter in either case.
        max_new_tokens: Longest answer that is sampled.
    """

    path: str
    images: str = "."
    match: Match = "exact"
    max_new_tokens: int = 64

    def questions(self) -> Sequence[Item]:
        """One question a row."""
        items = []
        for number, (where, row) in enumerate(read_rows(self.path)):
            names = row[first_key(row, ("images",), where)]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{where}: 'images' must be a list of files, not {names!r}")
            items.append(
                Item(
                    id=str(row.get("id", number)),
                    text=text_value(row, "prompt", where),
                    images=tuple(PictureFile(folder=self.images, name=name) for name in names),
                    meta={
                        "answers": _accepted(row, where),
                        "category": str(row.get("category", EVERYTHING)),
                    },
                )
            )
        return unique(items, self.path)

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Match answers, and average over all questions and over those of each category."""
        rows = [
            {
                "id": item.id,
                "category": item.meta["category"],
                "question": item.text,
                "answer": answer,
                "accepted": list(item.meta["answers"]),
                "right": any(matches(answer, one, how=self.match) for one in item.meta["answers"]),
            }
            for item, answer in zip(items, answers, strict=True)
        ]
        categories = dict.fromkeys(row["category"] for row in rows)
        return Report(
            metrics={"accuracy": _accuracy(rows)},
            categories={
                name: {"accuracy": _accuracy([row for row in rows if row["category"] == name])}
                for name in categories
            },
            counts={"empty answers": sum(not answer.strip() for answer in answers)},
            rows=rows,
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``id`` and ``answer``."""
        return AnswerFormat(id=("id",), answer=("answer",)).read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``id``, ``prompt`` and ``answer``."""
        rows = [
            {"id": item.id, "prompt": item.text, "answer": answer}
            for item, answer in zip(items, answers, strict=True)
        ]
        return write_lines(folder / "answers.jsonl", rows)


def matches(answer: str, right: str, *, how: Match) -> bool:
    """Whether an answer is the right one, or has its words in a row."""
    given, wanted = normalised(answer), normalised(right)
    return given == wanted if how == "exact" else f" {wanted} " in f" {given} "


def normalised(text: str) -> str:
    """The words of a text in lower case, one space between them, every mark a space."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _accepted(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    value = row[first_key(row, ("answer",), where)]
    found = tuple(value) if isinstance(value, list) else (value,)
    if not found or not all(isinstance(one, str) and normalised(one) for one in found):
        raise ValueError(
            f"{where}: 'answer' must be a string with a word, or a list of such, not {value!r}"
        )
    return found


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> Measured:
    return mean([float(row["right"]) for row in rows])
