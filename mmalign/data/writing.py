"""Writing data files that `File` reads: JSONL with the pictures as PNG files beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data.images import to_rgb
from mmalign.data.records import COLUMNS, COMPLETIONS
from mmalign.prompts import frames_of
from mmalign.types import Output, Preference, Prompt


def write_preferences(path: str | Path, records: Iterable[Preference]) -> int:
    """Write preferences such that ``File(path=...).preferences()`` gives them back.

    Pictures go into the folder ``<name>-images`` beside the file. Both sides' meta becomes columns.
    The file appears when it is complete.

    Args:
        path: A ``.jsonl`` file that does not exist yet.
        records: The preferences; they are written as they come, so a generator will do.

    Returns:
        The number of rows.

    Raises:
        ValueError: The file exists, meta is not JSON or takes a column's name, or the two sides of
            a record were asked different things.
    """
    return _write(Path(path), (_preference(record) for record in records))


def write_samples(path: str | Path, samples: Iterable[tuple[Prompt, Output]]) -> int:
    """Write prompts with one output each, as ``completion`` or ``completion_images``.

    Args:
        path: A ``.jsonl`` file that does not exist yet.
        samples: One prompt and output a row.

    Returns:
        The number of rows.

    Raises:
        ValueError: As `write_preferences`.
    """
    return _write(Path(path), (_sample(prompt, output) for prompt, output in samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """A row to be: JSON values, and pictures that become lists of paths."""

    values: Mapping[str, Any]
    pictures: Mapping[str, Sequence[Image.Image]]


def _write(path: Path, rows: Iterable[_Columns]) -> int:
    if path.suffix != ".jsonl":
        raise ValueError(f"{path} must end in .jsonl")
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f"{path.stem}-images"
    partial = path.with_name(f".{path.name}.partial")
    number = 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(_line(row, folder, number) + "\n")
            number += 1
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return number


def preference_line(record: Preference, images: Path, *, row: int, more: Mapping[str, Any]) -> str:
    """One line of a data file; its pictures are saved into the folder ``images`` beside the file.

    Args:
        record: The preference.
        images: The folder, made where it is missing.
        row: Names the record in messages.
        more: Further columns.

    Raises:
        ValueError: As `write_preferences`.
    """
    columns = _preference(record)
    return _line(replace(columns, values={**columns.values, **more}), images, row)


def _line(row: _Columns, folder: Path, number: int) -> str:
    values = dict(row.values)
    for key, pictures in row.pictures.items():
        values[key] = [_saved(picture, folder) for picture in pictures]
    return _json(values, number)


def _saved(picture: Image.Image, folder: Path) -> str:
    """Save a picture under a hash of its pixels, so that one used by many rows is saved once."""
    folder.mkdir(exist_ok=True)
    shown = to_rgb(picture)
    name = f"{hashlib.sha256(repr(shown.size).encode() + shown.tobytes()).hexdigest()[:20]}.png"
    if not (folder / name).exists():
        partial = folder / f".{name}.partial"
        shown.save(partial, format="PNG")
        partial.replace(folder / name)
    return f"{folder.name}/{name}"


def _json(values: Mapping[str, Any], number: int) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"record {number} cannot be written as JSON: {error}") from error


def _preference(record: Preference) -> _Columns:
    prompt, other = record.prompt, record.rejected_prompt
    values = {**_meta(prompt, record.meta), "prompt": _content(prompt)}
    pictures: dict[str, Sequence[Image.Image]] = {}
    if other is None:
        if prompt.images:
            pictures["images"] = prompt.images
    elif other.content != prompt.content:
        raise ValueError("the two sides of a record were asked different things; files cannot say")
    else:
        pictures |= {"chosen_images": prompt.images, "rejected_images": other.images}
    for side, output in (("chosen", record.chosen), ("rejected", record.rejected)):
        if isinstance(output, str):
            values[side] = _answer(output, prompt)
        elif other is not None:
            raise ValueError("a record whose answers are pictures has one prompt for both sides")
        else:
            pictures[f"{side}_images"] = frames_of(output)
    if record.margin is not None:
        values["margin"] = record.margin
    return _Columns(values=values, pictures=pictures)


def _sample(prompt: Prompt, output: Output) -> _Columns:
    values = {**_meta(prompt, {}), "prompt": _content(prompt)}
    pictures: dict[str, Sequence[Image.Image]] = {"images": prompt.images} if prompt.images else {}
    if isinstance(output, str):
        values["completion"] = _answer(output, prompt)
    else:
        pictures["completion_images"] = frames_of(output)
    return _Columns(values=values, pictures=pictures)


def _content(prompt: Prompt) -> Any:
    return prompt.content if isinstance(prompt.content, str) else list(prompt.content)


def _answer(text: str, prompt: Prompt) -> Any:
    """TRL's files hold either strings or conversations throughout."""
    if isinstance(prompt.content, str):
        return text
    return [{"role": "assistant", "content": text}]


def _meta(prompt: Prompt, more: Mapping[str, Any]) -> dict[str, Any]:
    found = {**prompt.meta, **more}
    taken = sorted(found.keys() & {*COLUMNS, *COMPLETIONS})
    if taken:
        raise ValueError(f"meta has a key {taken[0]!r}, which is the name of a column; rename it")
    return found
