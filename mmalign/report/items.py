"""A row of a data file as the gallery shows it; what is wrong with it is shown too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmalign.data.building import DROPPED
from mmalign.data.formats import Dropped, Row, RowError
from mmalign.data.rankings import LISTS, RankingRow
from mmalign.data.reading import CONVERT, Parsed, Reader, kind_of
from mmalign.data.records import (
    COLUMNS,
    COMPLETIONS,
    Content,
    DemonstrationRow,
    Encoded,
    Picture,
    PreferenceRow,
    PromptRow,
    prompt_row,
)
from mmalign.report.attention import Heat, heats
from mmalign.report.pictures import Shown, shown, shown_frames
from mmalign.report.words import Piece, Weighed, different, pieces

ATTENTION = "attention"
BUILDER = "builder"
TARGET = "target"
REGION = "region"
WEIGHTS = "weights_"
"""Columns of builders that are drawn: attention grids, the number of the picture that is asked
about, the part of the only picture that is (left, top, right, bottom as shares), weights of a side.
"""
MAX_TEXT = 8000
"""Characters of a text that are shown."""
MAX_VALUE = 240
"""Characters of a further column that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A picture of a prompt.

    Attributes:
        number: From 1, in reading order.
        shown: The picture.
        heat: Where the model looked, if the row says so.
        target: Whether the question is about this picture, if the row says so.
        region: The part of it that the question is about, if the row says so: left, top, width and
            height in per cent.
    """

    number: int
    shown: Shown
    heat: Heat | None = None
    target: bool = False
    region: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message of the prompt: text, and numbers of pictures where they stand."""

    role: str
    parts: tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """An answer.

    Attributes:
        title: The column's name.
        pieces: The text.
        picture: The answer, where it is a picture.
        views: What this side saw in place of the prompt's pictures.
        words: Number of words of the whole text.
        hidden: Characters that are not shown.
    """

    title: str
    pieces: tuple[Piece, ...] = ()
    picture: Shown | None = None
    views: tuple[Shown, ...] = ()
    words: int = 0
    hidden: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A row.

    Attributes:
        place: Its file and line.
        reason: Why it was dropped; "" where it was kept.
        problem: What is wrong with it; "" where nothing is.
        turns: The prompt.
        views: The prompt's pictures.
        sides: The answers.
        facts: Further columns.
    """

    place: str
    reason: str = ""
    problem: str = ""
    turns: tuple[Turn, ...] = ()
    views: tuple[View, ...] = ()
    sides: tuple[Side, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def gist(self) -> str:
        """The further columns in one line, long ones left out."""
        short = [f"{name} {value}" for name, value in self.facts if len(value) <= 24]
        return ", ".join(short[:12])

    @property
    def size(self) -> int:
        """Roughly how many bytes of the page it takes."""
        pictures = [view.shown.uri for view in self.views]
        pictures += [view.heat.uri for view in self.views if view.heat is not None]
        for side in self.sides:
            pictures += [view.uri for view in side.views]
            pictures += [] if side.picture is None else [side.picture.uri]
        texts = [piece.text for side in self.sides for piece in side.pieces]
        texts += [str(part) for turn in self.turns for part in turn.parts]
        return sum(len(text) for text in (*pictures, *texts)) + 2000


def item_of(reader: Reader, number: int, *, side: int, reason: str = "") -> Item:
    """A row of a file.

    Args:
        reader: The file.
        number: Of the row, from 0.
        side: Longest side of a picture in pixels.
        reason: Why it was dropped; "" where it was kept.
    """
    place = reader.where(number).removeprefix(f"{reader.place.path.parent}/")
    try:
        row = reader.read(number)
        parsed, problem = _parsed(row)
    except (RowError, Dropped) as error:
        return Item(place=place, reason=reason, problem=str(error))
    prompt = parsed if isinstance(parsed, PromptRow) else parsed.prompt
    attention = heats(row.get(ATTENTION), len(prompt.images))
    views = tuple(
        View(
            number=i + 1,
            shown=shown(picture, reader.place.folder, side=side),
            heat=attention.get(i),
            target=len(prompt.images) > 1 and row.get(TARGET) == i + 1,
            region=_region(row.get(REGION)) if len(prompt.images) == 1 else (),
        )
        for i, picture in enumerate(prompt.images)
    )
    return Item(
        place=place,
        reason=reason,
        problem="" if reason else problem,
        turns=_turns(prompt.content),
        views=views,
        sides=_sides(parsed, row, reader.place.folder, side),
        facts=_facts(row),
    )


def _parsed(row: Row) -> tuple[Parsed, str]:
    """The row, and what is wrong with it; an answer that is wrong does not hide the prompt."""
    kind = kind_of(row)
    try:
        return CONVERT[kind](row), ""
    except (RowError, Dropped) as error:
        problem = str(error)
    prompt = prompt_row(row)
    if kind == "preferences":
        chosen, rejected = (_said(row.get(side)) for side in ("chosen", "rejected"))
        return PreferenceRow(prompt=prompt, chosen=chosen, rejected=rejected), problem
    if kind == "demonstrations":
        return DemonstrationRow(prompt=prompt, completion=_said(row.get("completion"))), problem
    return prompt, problem


def _said(value: Any) -> str:
    """An answer as it stands, whatever its type."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def _turns(content: Content) -> tuple[Turn, ...]:
    if isinstance(content, str):
        return (Turn(role="user", parts=(content[:MAX_TEXT],)),)
    found, number = [], 0
    for message in content:
        inside = message["content"]
        parts: list[str | int] = []
        for part in [{"type": "text", "text": inside}] if isinstance(inside, str) else inside:
            if part["type"] == "image":
                number += 1
                parts.append(number)
            else:
                parts.append(part["text"][:MAX_TEXT])
        found.append(Turn(role=message["role"], parts=tuple(parts)))
    return tuple(found)


def _sides(parsed: Parsed, row: Row, folder: Path, side: int) -> tuple[Side, ...]:
    if isinstance(parsed, PromptRow):
        return ()
    if isinstance(parsed, DemonstrationRow):
        return (_side("answer", parsed.completion, row, folder, side, ()),)
    if isinstance(parsed, RankingRow):
        # The best first, equal ones as they stand in the row.
        scored = sorted(zip(parsed.scores, parsed.completions, strict=True), key=lambda x: -x[0])
        return tuple(
            _side(f"score {score:g}", answer, row, folder, side, ()) for score, answer in scored
        )
    other = parsed.rejected_prompt
    seen: tuple[Encoded, ...] = () if other is None else other.images
    views = tuple(shown(picture, folder, side=side) for picture in seen)
    chosen, rejected = parsed.chosen, parsed.rejected
    unlike: tuple[Any, Any] = ((), ())
    if isinstance(chosen, str) and isinstance(rejected, str):
        unlike = different(chosen[:MAX_TEXT], rejected[:MAX_TEXT])
    return (
        _side("chosen", chosen, row, folder, side, unlike[0]),
        replace(_side("rejected", rejected, row, folder, side, unlike[1]), views=views),
    )


def _side(
    title: str,
    answer: str | Picture,
    row: Row,
    folder: Path,
    side: int,
    changed: Sequence[tuple[int, int]],
) -> Side:
    if isinstance(answer, Picture):
        return Side(title=title, picture=shown_frames(answer.frames, folder, side=side))
    weights = {name: _weights(row.get(WEIGHTS + name)) for name in ("chosen", "rejected")}
    heaviest = max((w.severity for found in weights.values() for w in found), default=0.0) or 1.0
    text = answer[:MAX_TEXT]
    return Side(
        title=title,
        pieces=tuple(pieces(text, changed, weights.get(title, []), heaviest=heaviest)),
        words=len(answer.split()),
        hidden=len(answer) - len(text),
    )


def _region(value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
    if not numbers or len(value) != 4:
        return ()
    left, top, right, bottom = (min(max(float(x), 0.0), 1.0) for x in value)
    return tuple(round(100 * x, 2) for x in (left, top, right - left, bottom - top))


def _weights(value: Any) -> list[Weighed]:
    """The parts of an answer with their weights; what is no such part is left out."""
    found = []
    for part in value if isinstance(value, list) else ():
        if (
            isinstance(part, list)
            and len(part) == 4
            and all(isinstance(x, int | float) for x in part)
        ):
            start, end, severity, image = part
            found.append(Weighed(start=int(start), end=int(end), severity=severity, image=image))
    return found


def _facts(row: Row) -> tuple[tuple[str, str], ...]:
    lists = LISTS if kind_of(row) == "rankings" else ()
    drawn = {
        *COLUMNS,
        *COMPLETIONS,
        *lists,
        ATTENTION,
        DROPPED,
        f"{WEIGHTS}chosen",
        f"{WEIGHTS}rejected",
    }
    found = {key: value for key, value in row.items() if key not in drawn and value is not None}
    if row.get("margin") is not None:
        found["margin"] = row["margin"]
    # What a builder says begins with its name; the columns of its data come after that.
    first = list(found).index(BUILDER) if BUILDER in found else 0
    keys = [*list(found)[first:], *list(found)[:first]]
    return tuple((key, _json(found[key])) for key in keys)


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
