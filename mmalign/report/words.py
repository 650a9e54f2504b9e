"""Two texts word by word: what one has and the other has not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TypeAlias

Range: TypeAlias = tuple[int, int]
"""First character, and behind the last."""

MAX_WORDS = 1500
"""Longer texts are not compared: the time grows with the product of both."""

# Scripts that are written without spaces are compared letter by letter.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A part of a text and its weights in training.

    Attributes:
        start: First character.
        end: Behind the last.
        severity: Its weight where the answer is compared with the other one.
        image: Its weight where the answer is compared with itself under another picture.
    """

    start: int
    end: int
    severity: float
    image: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of a text, as it is shown.

    Attributes:
        text: The piece.
        changed: Whether the other text lacks it.
        tint: 0 to 1, how strongly it is coloured by its weight; None for not at all.
        title: What is said about it where the pointer rests.
    """

    text: str
    changed: bool = False
    tint: float | None = None
    title: str = ""


def different(first: str, second: str) -> tuple[list[Range], list[Range]]:
    """The characters of each text that the other one lacks, by whole words.

    White space between two such words belongs to them, so that a phrase is one range.

    Returns:
        Ranges of the first and of the second text; none where a text is too long to compare.
    """
    a, b = _WORDS.findall(first), _WORDS.findall(second)
    if max(len(a), len(b)) > MAX_WORDS:
        return [], []
    flags: tuple[list[bool], list[bool]] = ([True] * len(a), [True] * len(b))
    for match in SequenceMatcher(a=a, b=b, autojunk=False).get_matching_blocks():
        flags[0][match.a : match.a + match.size] = [False] * match.size
        flags[1][match.b : match.b + match.size] = [False] * match.size
    return _ranges(a, flags[0]), _ranges(b, flags[1])


def _ranges(words: Sequence[str], flags: Sequence[bool]) -> list[Range]:
    last = len(words) - 1
    found: list[Range] = []
    start = 0
    for i, word in enumerate(words):
        between = word.isspace() and 0 < i < last and flags[i - 1] and flags[i + 1]
        if (flags[i] and not word.isspace()) or between:
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], start + len(word))
            else:
                found.append((start, start + len(word)))
        start += len(word)
    return found


def pieces(
    text: str, changed: Sequence[Range], weights: Sequence[Weighed], *, heaviest: float
) -> list[Piece]:
    """A text cut wherever something about it changes.

    Args:
        text: The text.
        changed: What the other text lacks.
        weights: Parts with weights, apart from each other.
        heaviest: The weight that is tinted fully.
    """
    cuts = {0, len(text)}
    for start, end in changed:
        cuts |= {start, end}
    for part in weights:
        cuts |= {part.start, part.end}
    edges = sorted(cut for cut in cuts if 0 <= cut <= len(text))
    found = []
    for start, end in pairwise(edges):
        inside = next((w for w in weights if w.start <= start < w.end), None)
        found.append(
            Piece(
                text=text[start:end],
                changed=any(low <= start < high for low, high in changed),
                tint=None if inside is None else round(min(inside.severity / heaviest, 1.0), 2),
                title="" if inside is None else _said(inside),
            )
        )
    return found


def _said(part: Weighed) -> str:
    return f"weight {part.severity:g}, under another picture {part.image:g}"
