"""A row of single-picture data as one question about one picture with its right answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

from mmalign.types import Message, Output, Prompt

COORDINATES = re.compile(r"[\[(]\s*\d*\.\d+\s*(?:,\s*\d*\.\d+\s*){3}[\])]")
"""Four decimal numbers in brackets, as LLaVA's data writes the box of an object."""
TRIES_PER_COMPANION = 16

Demonstration = tuple[Prompt, Output]


class Unusable(Exception):
    """A row cannot be used; the message is the reason, in two or three words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question about one picture.

    Attributes:
        image: The picture.
        question: The user's words, without a place for the picture.
        truth: The right answer.
        before: Messages before the question, such as the system's.
        meta: The row's further columns.
    """

    image: Image.Image
    question: str
    truth: str
    before: tuple[Message, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_coordinates(self) -> bool:
        """Whether it is about places in the picture that are given in numbers."""
        return any(COORDINATES.search(text) for text in (self.question, self.truth))


def asked(row: Demonstration, *, image_token: str) -> Asked:
    """The first question of a conversation and its answer.

    Args:
        row: A prompt about one picture and the right answer to its last question.
        image_token: How text marks the place of a picture.

    Raises:
        Unusable: There is not one picture, no question, or no answer in words.
    """
    prompt, output = row
    if len(prompt.images) != 1:
        raise Unusable("not one picture")
    before, question, truth = _first_turn(prompt, output)
    text = _text(question).replace(image_token, "").strip()
    if not text:
        raise Unusable("no question")
    if not isinstance(truth, str) or not truth.strip():
        raise Unusable("no right answer in words")
    return Asked(
        image=prompt.images[0],
        question=text,
        truth=truth.strip(),
        before=before,
        meta=prompt.meta,
    )


def companions(
    rows: Sequence[Demonstration],
    row: int,
    number: int,
    draw: Random,
    *,
    same: Callable[[Prompt], Any],
) -> dict[int, Image.Image]:
    """Pictures of other rows, all different from each other and from that of ``row``.

    Args:
        rows: The data; a row is read when it is drawn.
        row: The row that they are to stand beside.
        number: How many.
        draw: Rows are drawn without replacement; `TRIES_PER_COMPANION` times ``number`` at most.
        same: What a companion's prompt has in common with that of ``row``.

    Returns:
        Picture by row, in the order of the draw.

    Raises:
        Unusable: Too few other pictures were found.
    """
    prompt = rows[row][0]
    shared, seen = same(prompt), {content(prompt.images[0])}
    found: dict[int, Image.Image] = {}
    tries = min(len(rows), TRIES_PER_COMPANION * number)
    for other in draw.sample(range(len(rows)), tries):
        theirs = rows[other][0]
        if len(theirs.images) != 1 or same(theirs) != shared:
            continue
        key = content(theirs.images[0])
        if key not in seen:
            seen.add(key)
            found[other] = theirs.images[0]
        if len(found) == number:
            return found
    raise Unusable("too few other pictures")


def content(picture: Image.Image) -> str:
    """What tells a picture from another: a hash of its pixels."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()


def _first_turn(prompt: Prompt, output: Output) -> tuple[tuple[Message, ...], Any, Output]:
    """Messages before the first question, the question, and what was answered to it."""
    if isinstance(prompt.content, str):
        return (), prompt.content, output
    messages = prompt.content
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise Unusable("no question")
    first = roles.index("user")
    if "assistant" not in roles[first:]:
        # Several messages of the user in a row are one question.
        parts = [_text(m["content"]) for m in messages[first:] if m["role"] == "user"]
        return tuple(messages[:first]), "\n".join(parts), output
    answer = messages[roles.index("assistant", first)]
    return tuple(messages[:first]), messages[first]["content"], _text(answer["content"])


def _text(said: Any) -> str:
    """The words of a message's content."""
    if isinstance(said, str):
        return said
    return "\n".join(part["text"] for part in said if part["type"] == "text")
