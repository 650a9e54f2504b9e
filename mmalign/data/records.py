"""Rows of a data file as prompts and preferences, checked.

A row has TRL's columns: ``prompt``, ``chosen``, ``rejected`` (strings or conversations; without a
``prompt`` column it is what the two sides share), ``images``, ``margin``. ``chosen_images`` and
``rejected_images`` are, for text answers, what each side saw in place of ``images``; in a row
without text answers they hold the one picture that is the answer. Other columns become ``meta``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.data.formats import Dropped, Row, RowError, short
from mmalign.types import Message

COLUMNS = ("prompt", "chosen", "rejected", "images", "chosen_images", "rejected_images", "margin")
COMPLETIONS = ("completion", "completion_images")
"""Columns of a file of demonstrations or samples; elsewhere they are not read, and no meta."""
LABEL = "label"
"""Column of a file of labelled outputs; elsewhere it is meta like any other."""
ROLES = ("system", "developer", "user", "assistant", "tool")
PLACEHOLDER = "<image>"

Content = str | tuple[Message, ...]
Encoded = str | bytes
"""A picture in a row: the path of a file, or the file's bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """The prompt of a row, its pictures not opened.

    Attributes:
        content: As in `mmalign.types.Prompt`, with one image part for each picture.
        images: The pictures, in reading order.
        meta: All columns that have no meaning here.
    """

    content: Content
    images: tuple[Encoded, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> tuple[Encoded, ...]:
        """Every picture of the row."""
        return self.images


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An answer that is a picture, or a clip: its frames in the order of time."""

    frames: tuple[Encoded, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceRow:
    """A preference, its pictures not opened; as `mmalign.types.Preference`."""

    prompt: PromptRow
    chosen: str | Picture
    rejected: str | Picture
    rejected_prompt: PromptRow | None = None
    margin: float | None = None

    @property
    def pictures(self) -> tuple[Encoded, ...]:
        """Every picture of the row."""
        seen = self.rejected_prompt.images if self.rejected_prompt else ()
        answers = [a.frames for a in (self.chosen, self.rejected) if isinstance(a, Picture)]
        return (*self.prompt.images, *seen, *(frame for frames in answers for frame in frames))


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationRow:
    """A prompt with the answer that is right, its pictures not opened."""

    prompt: PromptRow
    completion: str | Picture

    @property
    def pictures(self) -> tuple[Encoded, ...]:
        """Every picture of the row."""
        shown = self.completion.frames if isinstance(self.completion, Picture) else ()
        return (*self.prompt.images, *shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRow:
    """An output with its label, its pictures not opened; as `mmalign.types.Labelled`."""

    prompt: PromptRow
    completion: str | Picture
    label: bool

    @property
    def pictures(self) -> tuple[Encoded, ...]:
        """Every picture of the row."""
        shown = self.completion.frames if isinstance(self.completion, Picture) else ()
        return (*self.prompt.images, *shown)


def prompt_row(row: Row) -> PromptRow:
    """The prompt of a row in TRL's columns; its answers, if any, are left aside.

    Raises:
        RowError: Saying which column is wrong and what to do.
    """
    content = _prompt(row)[0]
    return _with_images(content, _images(row, "images"), row)


def preference_row(row: Row) -> PreferenceRow:
    """The preference of a row in TRL's columns.

    Raises:
        RowError: Saying which column is wrong and what to do.
        Dropped: Both answers are the same.
    """
    shared = _images(row, "images")
    sides = {side: _images(row, f"{side}_images") for side in ("chosen", "rejected")}
    if row.get("chosen") is None and row.get("rejected") is None and any(sides.values()):
        answers = [_picture(sides[side], side) for side in ("chosen", "rejected")]
        found = PreferenceRow(
            prompt=_with_images(_prompt(row)[0], shared, row),
            chosen=answers[0],
            rejected=answers[1],
            margin=_margin(row),
        )
    else:
        content, chosen, rejected = _prompt(row)
        seen = [shared if sides[side] is None else sides[side] for side in ("chosen", "rejected")]
        found = PreferenceRow(
            prompt=_with_images(content, seen[0], row),
            chosen=_answer(chosen, "chosen"),
            rejected=_answer(rejected, "rejected"),
            rejected_prompt=None if seen[0] == seen[1] else _with_images(content, seen[1], row),
            margin=_margin(row),
        )
    if found.chosen == found.rejected and found.rejected_prompt is None:
        raise Dropped("identical answers")
    return found


def demonstration_row(row: Row) -> DemonstrationRow:
    """The prompt and the completion of a row in TRL's columns.

    Raises:
        RowError: Saying which column is wrong and what to do.
    """
    shown = _images(row, "completion_images")
    if row.get("completion") is None and shown is not None:
        completion: str | Picture = _picture(shown, "completion")
    else:
        completion = _answer(row.get("completion"), "completion")
    return DemonstrationRow(prompt=prompt_row(row), completion=completion)


def labelled_row(row: Row) -> LabelledRow:
    """The prompt, the completion and the label of a row in TRL's columns.

    Raises:
        RowError: Saying which column is wrong and what to do.
    """
    label = row.get(LABEL)
    if label is None:
        raise RowError("missing column", f"{LABEL!r} is missing or null; see `columns`")
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise RowError(
            "wrong type",
            f"{LABEL!r} must be true (desirable) or false, or 1 or 0, not {short(label)}",
        )
    found = demonstration_row(row)
    return LabelledRow(prompt=found.prompt, completion=found.completion, label=bool(label))


def _prompt(row: Row) -> tuple[Content, Any, Any]:
    """The prompt and what is left of the two answers, the prompt removed where it was implicit."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt = row.get("prompt")
    if prompt is not None:
        return _checked_prompt(prompt), chosen, rejected
    if chosen is None or rejected is None:
        raise RowError("missing column", f"'prompt' is not among {sorted(row)}; see `columns`")
    both = [type(chosen), type(rejected)]
    if both not in ([str, str], [list, list]):
        raise RowError("wrong type", "chosen and rejected must both be strings or both be lists")
    unequal = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
    length = next(unequal, min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        # Cut between words, so that neither answer begins in the middle of one.
        spaces = (i for i in range(length - 1, -1, -1) if chosen[i : i + 1].isspace())
        length = len(chosen[: next(spaces, 0)].rstrip())
    if length == 0:
        raise RowError("missing column", "there is no 'prompt', and the answers share no beginning")
    return _checked_prompt(chosen[:length]), chosen[length:], rejected[length:]


def _checked_prompt(prompt: Any) -> Content:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError("empty prompt", "'prompt' is empty")
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise RowError(
            "wrong type", f"'prompt' must be a string or a list of messages, not {short(prompt)}"
        )
    messages = tuple(_message(m, "prompt") for m in prompt)
    if messages[-1]["role"] == "assistant":
        raise RowError(
            "wrong value", "'prompt' ends with the assistant; answers go into chosen and rejected"
        )
    return messages


def _message(message: Any, key: str) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise RowError(
            "wrong type", f"a message of {key!r} must have 'role' and 'content': {short(message)}"
        )
    if message["role"] not in ROLES:
        raise RowError(
            "wrong value", f"{key!r} has the role {message['role']!r}; known are {ROLES}"
        )
    content = message["content"]
    if isinstance(content, list):
        content = [_part(part, key) for part in content]
    elif not isinstance(content, str):
        raise RowError(
            "wrong type", f"content in {key!r} must be a string or a list, not {short(content)}"
        )
    return {**{k: v for k, v in message.items() if v is not None}, "content": content}


def _part(part: Any, key: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise RowError(
        "wrong type",
        f'a part of {key!r} must be {{"type": "text", "text": ...}} or {{"type": "image"}}, with '
        f"the pictures in the column 'images': {short(part)}",
    )


def _answer(value: Any, key: str) -> str:
    if value is None:
        raise RowError("missing column", f"{key!r} is missing or null; see `columns`")
    if isinstance(value, list):
        messages = [_message(m, key) for m in value]
        if [m["role"] for m in messages] != ["assistant"]:
            raise RowError(
                "wrong value",
                f"{key!r} must be one assistant message after the prompt, not {len(messages)} "
                f"of {[m['role'] for m in messages]}",
            )
        content = messages[0]["content"]
        value = content if isinstance(content, str) else "".join(_text(p, key) for p in content)
    if not isinstance(value, str):
        raise RowError("wrong type", f"{key!r} must be text, not {short(value)}")
    if not value.strip():
        raise RowError("empty answer", f"{key!r} is empty; remove the row or fill it in")
    return value


def _text(part: Mapping[str, Any], key: str) -> str:
    if part["type"] != "text":
        raise RowError("wrong value", f"{key!r} mixes text and pictures")
    return str(part["text"])


def _images(row: Row, key: str) -> tuple[Encoded, ...] | None:
    value = row.get(key)
    if value is None:
        return None
    return tuple(_encoded(v, key) for v in (value if isinstance(value, list) else [value]))


def _encoded(value: Any, key: str) -> Encoded:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | bytes):
        return value
    raise RowError(
        "wrong type", f"{key!r} must hold paths, or bytes in parquet files, not {short(value)}"
    )


def _picture(images: tuple[Encoded, ...] | None, side: str) -> Picture:
    if not images:
        raise RowError(
            "wrong value",
            f"a row without text answers needs a picture in '{side}_images', or the frames of a "
            "clip",
        )
    return Picture(frames=images)


def _with_images(content: Content, images: tuple[Encoded, ...] | None, row: Row) -> PromptRow:
    meta = {key: value for key, value in row.items() if key not in (*COLUMNS, *COMPLETIONS)}
    # A text without any picture may well contain the placeholder's letters.
    if images is not None:
        content = _placed(content, len(images))
    elif not isinstance(content, str) and (places := _places(content)):
        raise RowError("placeholders", f"{places} image parts, but the row has no 'images'")
    return PromptRow(content=content, images=images or (), meta=meta)


def _placed(content: Content, number: int) -> Content:
    """The content with one image part a picture: marked in the text, or before the first words."""
    if isinstance(content, str):
        if PLACEHOLDER not in content:
            return content
        content = ({"role": "user", "content": content},)
    if not _places(content):
        content = tuple(_split(m) if isinstance(m["content"], str) else m for m in content)
    places = _places(content)
    if places == 0 and number:
        return _first_asked(content, number)
    if places != number:
        raise RowError(
            "placeholders", f"the prompt has {places} places for pictures, the row {number}"
        )
    return content


def _places(content: Sequence[Message]) -> int:
    parts = [p for m in content if not isinstance(m["content"], str) for p in m["content"]]
    return sum(part["type"] == "image" for part in parts)


def _split(message: Message) -> Message:
    pieces = message["content"].split(PLACEHOLDER)
    if len(pieces) == 1:
        return message
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece}] if piece.strip() else []
    return {**message, "content": parts}


def _first_asked(content: Sequence[Message], number: int) -> tuple[Message, ...]:
    asked = next((i for i, m in enumerate(content) if m["role"] == "user"), None)
    if asked is None:
        raise RowError("placeholders", f"no user message to put the {number} pictures into")
    inside = content[asked]["content"]
    parts = [{"type": "text", "text": inside}] if isinstance(inside, str) else list(inside)
    new = {**content[asked], "content": [*[{"type": "image"}] * number, *parts]}
    return (*content[:asked], new, *content[asked + 1 :])


def _margin(row: Row) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError("wrong type", f"'margin' must be a finite number, not {short(value)}")
    return float(value)
