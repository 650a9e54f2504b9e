"""How much a model looks at the picture that it is asked about, among several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmalign.benchmarks import (
    AnswerDrawing,
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
from mmalign.policy import Policy
from mmalign.vision.completing import Completed, Decoding, complete
from mmalign.vision.mia.attention import look
from mmalign.vision.mia.selection import sequence_share

TARGET = "target"
NO_MODEL = (
    "attention is measured while a model answers, and a file of answers holds none; give FILE, the "
    "run or the config whose model is to be measured, instead of --answers"
)
FORMAT = AnswerFormat(id=("id",), answer=("answer",))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOnTarget:
    """The mean share of attention on the picture that a question is about, by MIA-DPO's measure.

    Of a row: ``a_target / sum_i a_i``, where ``a_i`` is the mean attention of one layer, over its
    heads and over the answer's tokens but the first, on the tokens of picture i. It is ``1 / n``
    where a model looks at n pictures alike, and 1 where it looks at the right one alone.

    A row has ``prompt``, ``images`` (a list of at least two files), ``target`` (which picture the
    question is about, from 0), and optionally ``id`` (else its number from 0) and ``category``.

    Attributes:
        path: A JSONL, JSON or parquet file.
        images: The folder of the pictures.
        depth: Which layer: the share of the decoder's layers that come before, 0.5 for layer 16
            (from 0) of 32.
        max_new_tokens: Longest answer that is sampled.
    """

    path: str
    images: str = "."
    depth: float = 0.5
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= 1:
            raise ValueError(f"depth={self.depth} must lie between 0 and 1")

    def questions(self) -> Sequence[Item]:
        """One question a row."""
        items = []
        for number, (where, row) in enumerate(read_rows(self.path)):
            names = row[first_key(row, ("images",), where)]
            if not isinstance(names, list) or len(names) < 2:
                raise ValueError(f"{where}: 'images' must be a list of two files or more")
            target = row[first_key(row, (TARGET,), where)]
            if not isinstance(target, int) or not 0 <= target < len(names):
                raise ValueError(
                    f"{where}: 'target' must be a picture's number, 0 to {len(names) - 1}, not "
                    f"{target!r}"
                )
            items.append(
                Item(
                    id=str(row.get("id", number)),
                    text=text_value(row, "prompt", where),
                    images=tuple(PictureFile(folder=self.images, name=str(n)) for n in names),
                    meta={TARGET: target, "category": str(row.get("category", "all"))},
                )
            )
        return unique(items, self.path)

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Report:
        """Refused: answers alone do not say where a model looked."""
        del items, answers
        raise ValueError(NO_MODEL)

    def probe(
        self, policy: Policy, items: Sequence[Item], drawing: AnswerDrawing
    ) -> tuple[list[str], Report]:
        """The answers, and where the model looked while it gave them."""
        return attention_probe(
            policy, items, drawing, depth=self.depth, max_new_tokens=self.max_new_tokens
        )

    def read_answers(self, path: Path, items: Sequence[Item]) -> list[str]:
        """Rows with ``id`` and ``answer``."""
        return FORMAT.read(path, items)

    def write_answers(self, folder: Path, items: Sequence[Item], answers: Sequence[str]) -> Path:
        """``answers.jsonl`` with ``id``, ``prompt`` and ``answer``."""
        rows = [
            {"id": item.id, "prompt": item.text, "answer": answer}
            for item, answer in zip(items, answers, strict=True)
        ]
        return write_lines(folder / "answers.jsonl", rows)


def attention_probe(
    policy: Policy,
    items: Sequence[Item],
    drawing: AnswerDrawing,
    *,
    depth: float,
    max_new_tokens: int,
) -> tuple[list[str], Report]:
    """Answer questions and see how much of the attention was on each one's target.

    Args:
        policy: A vision-language model of a family in `mmalign.vision.spans`.
        items: Questions about several pictures, ``target`` and ``category`` in their meta.
        drawing: How answers are drawn; attention is read one by one.
        depth: Which layer; see `mmalign.vision.mia.attention.look`.
        max_new_tokens: Longest answer.

    Returns:
        The answers, and the report.
    """
    shares: list[float | None] = []
    answers: list[str] = []
    size = drawing.batch_size
    decoding = Decoding(temperature=drawing.temperature, max_new_tokens=max_new_tokens)
    for start in tqdm(range(0, len(items), size), desc="looking", leave=False):
        part = items[start : start + size]
        prompts = [item.prompt() for item in part]
        found = complete(
            policy,
            prompts,
            decoding=decoding,
            generators=drawing.generators(part),
            batch_size=size,
        )
        for item, prompt, completed in zip(part, prompts, found, strict=True):
            answers.append(completed.text)
            shares.append(_share(policy, prompt, completed, int(item.meta[TARGET]), depth))
    return answers, attention_report(items, answers, shares)


def attention_report(
    items: Sequence[Item], answers: Sequence[str], shares: Sequence[float | None]
) -> Report:
    """Average the shares of attention on targets, and their ratio to looking at all alike.

    Args:
        items: The questions.
        answers: One for each.
        shares: Of attention on the target, in [0, 1]; None where it could not be measured.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": item.id,
            "category": item.meta["category"],
            "question": item.text,
            "answer": answer,
            "target": item.meta[TARGET],
            "pictures": len(item.images),
            "share": share,
        }
        for item, answer, share in zip(items, answers, shares, strict=True)
    ]
    seen = [row for row in rows if row["share"] is not None]
    categories = dict.fromkeys(row["category"] for row in seen)
    return Report(
        metrics=_numbers(seen),
        categories={
            name: _numbers([row for row in seen if row["category"] == name]) for name in categories
        },
        counts={
            "answers too short, or without attention on any picture": len(rows) - len(seen),
            "empty answers": sum(not answer.strip() for answer in answers),
        },
        rows=rows,
    )


def _numbers(rows: Sequence[dict[str, Any]]) -> dict[str, Measured]:
    return {
        "attention_on_target": mean([row["share"] for row in rows]),
        "times_chance": mean([row["share"] * row["pictures"] for row in rows]),
    }


def _share(
    policy: Policy, prompt: Any, completed: Completed, target: int, depth: float
) -> float | None:
    """The share of attention on the target; None where there is none to measure."""
    if len(completed.tokens) < 2:
        return None
    share = sequence_share(look(policy, prompt, completed.tokens, depth=depth), target)
    return None if math.isnan(share) else share
