"""Rows of a data file as lists of scored outputs, checked.

A row has a ``prompt``, its ``images``, and ``completions``: a list of two or more answers, each a
string or one assistant message, or, of a tree of reasoning, a list of strings, the steps of the
branch. Without text answers ``completion_images`` holds as many pictures. ``scores`` has a number
for each, higher is better; equal numbers are ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmalign.data.formats import Dropped, Row, RowError, short
from mmalign.data.records import Encoded, Picture, PromptRow, demonstration_row

LISTS = ("completions", "scores")
"""Columns of a file of lists; elsewhere they are meta like any other."""
TEXTS, PICTURES = "completions", "completion_images"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingRow:
    """A list of scored outputs, its pictures not opened; as `mmalign.types.Ranking`."""

    prompt: PromptRow
    completions: tuple[str | Picture, ...]
    scores: tuple[float, ...]
    steps: tuple[tuple[str, ...], ...] | None = None

    @property
    def pictures(self) -> tuple[Encoded, ...]:
        """Every picture of the row."""
        shown = [one.frames for one in self.completions if isinstance(one, Picture)]
        return (*self.prompt.images, *(frame for frames in shown for frame in frames))


def ranking_row(row: Row) -> RankingRow:
    """The prompt, the completions and the scores of a row.

    Raises:
        RowError: Saying which column is wrong and what to do.
        Dropped: All scores are equal.
    """
    shared = {key: value for key, value in row.items() if key not in (*LISTS, PICTURES)}
    key = TEXTS if row.get(TEXTS) is not None else PICTURES
    given = _list(row, key)
    steps = _steps(given) if key == TEXTS else None
    found = []
    for number, value in enumerate(given if steps is None else map("".join, steps)):
        one: Row = {"completion": value} if key == TEXTS else {PICTURES: [value]}
        try:
            found.append(demonstration_row({**shared, **one}))
        except RowError as error:
            said = str(error).removeprefix(f"{error.reason}: ")
            raise RowError(error.reason, f"{key}[{number}]: {said}") from error
    scores = _scores(row, len(found))
    completions = tuple(one.completion for one in found)
    for number, output in enumerate(completions):
        if output in completions[:number]:
            raise RowError(
                "duplicate answer",
                f"{key}[{number}] is {key}[{completions.index(output)}] again; an output stands "
                "in a list once",
            )
    if len(set(scores)) == 1:
        raise Dropped("equal scores")
    return RankingRow(prompt=found[0].prompt, completions=completions, scores=scores, steps=steps)


def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        raise RowError(
            "missing column",
            f"neither {TEXTS!r} nor {PICTURES!r} is among {sorted(row)}; see `columns`",
        )
    if not isinstance(value, list) or len(value) < 2:
        raise RowError("wrong type", f"{key!r} must be a list of two or more, not {short(value)}")
    return value


def _steps(given: list[Any]) -> tuple[tuple[str, ...], ...] | None:
    """The completions as lists of steps; None where they are strings or messages."""
    cut = [isinstance(value, list) and all(isinstance(s, str) for s in value) for value in given]
    if not any(cut):
        return None
    for number, value in enumerate(given):
        if not cut[number] or not value or not all(value):
            raise RowError(
                "wrong type",
                f"{TEXTS}[{number}] must be a list of steps, none empty, as others in its row are, "
                f"not {short(value)}",
            )
    return tuple(tuple(value) for value in given)


def _scores(row: Row, count: int) -> tuple[float, ...]:
    value = row.get("scores")
    if value is None:
        raise RowError("missing column", f"'scores' is missing or null, for {count} completions")
    if not isinstance(value, list) or len(value) != count:
        raise RowError(
            "wrong value",
            f"'scores' must be a list of {count} numbers, one for each completion, not "
            f"{short(value)}",
        )
    for number, score in enumerate(value):
        number_like = isinstance(score, int | float) and not isinstance(score, bool)
        if not number_like or not math.isfinite(score):
            raise RowError(
                "wrong type", f"scores[{number}] must be a finite number, not {short(score)}"
            )
    return tuple(float(score) for score in value)
