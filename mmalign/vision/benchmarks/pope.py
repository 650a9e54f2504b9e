"""POPE: is there a dog in the picture?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.benchmarks import (
    AnswerFormat,
    Item,
    Measured,
    PictureFile,
    Report,
    read_rows,
    text_value,
    unique,
    write_lines,
)
from mmalign.vision.benchmarks.yes_no import Confusion, mean_of_splits, pope_says_yes, undecided

SPLIT = "category"
LABELS = ("yes", "no")


@dataclass(frozen=True, slots=True, kw_only=True)
class POPE:
    """Polling-based object probing: yes-no questions about objects that are there and that are not.

    Accuracy, precision, recall and F1 with yes as the positive class, and the share of yes; of each
    file (random, popular and adversarial negatives), and as the mean over the files.

    Source: Li et al. 2023, arXiv 2305.10355; formats and rules as in github.com/AoiDragon/POPE.

    Attributes:
        files: The question files by the name of their split: one JSON object a line with
            ``question_id``, ``image``, ``text`` and ``label`` (yes or no), whatever the ending.
        images: The folder of the pictures; not needed to score answers.
        instruction: Added to each question, such as " Answer yes or no."; the published questions
            stand alone.
        max_new_tokens: Longest answer that is sampled.
    """

    files: Mapping[str, str]
    images: str = "."
    instruction: str = ""
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; name a file, as in {random: coco_pope_random.json}")

    def questions(self) -> Sequence[Item]:
        """The questions of all files, one file after the other."""
        items = [item for split, path in self.files.items() for item in self._of(split, path)]
        return unique(items, ", ".join(self.files.values()))

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Score answers, split by split."""
        return yes_no_report(items, answers, category=SPLIT)

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``question_id`` and ``answer`` or ``text``, or the published rows without ids.

        With several files, rows with ids also name their ``category``: the ids of the published
        files repeat.
        """
        return AnswerFormat(
            id=("question_id",), answer=("answer", "text"), ordered=True, identify=self._identify
        ).read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl``: what the published script reads, and the ids besides."""
        rows = [
            {
                "question_id": item.meta["question_id"],
                SPLIT: item.meta[SPLIT],
                "question": item.meta["text"],
                "answer": answer,
            }
            for item, answer in zip(items, answers, strict=True)
        ]
        return write_lines(folder / "answers.jsonl", rows)

    def _of(self, split: str, path: str) -> list[Item]:
        items = []
        for where, row in read_rows(path, lines=True):
            label = text_value(row, "label", where)
            if label not in LABELS:
                raise ValueError(f"{where}: 'label' must be yes or no, not {label!r}")
            if "question_id" not in row:
                raise ValueError(f"{where}: lacks 'question_id'; there are {sorted(row)}")
            text = text_value(row, "text", where)
            items.append(
                Item(
                    id=self._name(split, str(row["question_id"])),
                    text=text + self.instruction,
                    images=(PictureFile(folder=self.images, name=text_value(row, "image", where)),),
                    meta={**row, SPLIT: split, "yes": label == "yes"},
                )
            )
        return items

    def _name(self, split: str, number: str) -> str:
        return number if len(self.files) == 1 else f"{split} {number}"

    def _identify(self, row: Mapping[str, Any], number: str) -> str:
        if len(self.files) == 1:
            return number
        if row.get(SPLIT) not in self.files:
            raise ValueError(
                f"the answer to question {number} must name its {SPLIT}, one of "
                f"{', '.join(self.files)}, not {row.get(SPLIT)!r}"
            )
        return self._name(str(row[SPLIT]), number)


def yes_no_report(items: Sequence[Item], answers: Sequence[str], *, category: str) -> Report:
    """POPE's numbers of answers to questions whose meta holds ``yes`` and a category.

    Args:
        items: The questions.
        answers: One for each.
        category: The key of the category in the items' meta.

    Returns:
        The numbers of each category, and the mean over the categories of each number.
    """
    said = [pope_says_yes(answer) for answer in answers]
    rows = [
        {
            "id": item.id,
            "category": item.meta[category],
            "question": item.text,
            "answer": answer,
            "said": LABELS[not yes],
            "true": LABELS[not item.meta["yes"]],
            "undecided": undecided(answer),
        }
        for item, answer, yes in zip(items, answers, said, strict=True)
    ]
    categories: dict[str, dict[str, Measured]] = {}
    for name in dict.fromkeys(row["category"] for row in rows):
        mine = [row for row in rows if row["category"] == name]
        counted = Confusion.of(
            [row["said"] == "yes" for row in mine], [row["true"] == "yes" for row in mine]
        )
        categories[name] = counted.metrics()
    names = next(iter(categories.values()))
    return Report(
        metrics={key: mean_of_splits([c[key] for c in categories.values()]) for key in names},
        categories=categories,
        counts={
            "undecided answers counted as yes": sum(bool(row["undecided"]) for row in rows),
            "empty answers": sum(not answer.strip() for answer in answers),
        },
        rows=rows,
    )
