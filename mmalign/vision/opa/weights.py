"""Weights of the tokens of an answer: from weights of its characters, or from what changed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

NEUTRAL = 1.0


class Span(NamedTuple):
    """A part of an answer and its weights; ``[start, end, severity, image]`` in a data file.

    Attributes:
        start: First character.
        end: Behind the last character.
        severity: Weight of its tokens where the answer is compared with another one.
        image: Weight of its tokens where the answer is compared with itself under another picture.
    """

    start: int
    end: int
    severity: float
    image: float


def spans_of(value: Any, answer: str, *, where: str) -> list[Span]:
    """The spans in a column of a data file.

    Args:
        value: What the column holds.
        answer: The text that they are about.
        where: Names row and column in messages.

    Raises:
        ValueError: It is not a list of such spans within the text, in order and apart.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{where} must be a list of [start, end, severity, image], not {value!r:.80}"
        )
    found: list[Span] = []
    for item in value:
        good = (
            isinstance(item, list | tuple)
            and len(item) == len(Span._fields)
            and all(isinstance(x, int | float) and not isinstance(x, bool) for x in item)
        )
        if not good:
            raise ValueError(f"{where}: {item!r:.80} is not [start, end, severity, image]")
        span = Span(int(item[0]), int(item[1]), float(item[2]), float(item[3]))
        before = found[-1].end if found else 0
        if not before <= span.start < span.end <= len(answer):
            raise ValueError(
                f"{where}: {list(item)} is out of order, empty or beyond the {len(answer)} "
                "characters of the answer"
            )
        if min(span.severity, span.image) < 0:
            raise ValueError(f"{where}: {list(item)} has a weight below 0")
        found.append(span)
    return found


def token_spans(
    tokenizer: PreTrainedTokenizerBase, answer: str, spans: Sequence[Span]
) -> list[Span | None]:
    """The span that each token of an answer belongs to; None for those outside all spans.

    A token belongs where its last character stands: a token that begins with the space before a
    sentence is of that sentence. A token without characters of its own is of its predecessor's.

    Raises:
        ValueError: The tokenizer does not say where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for, which "
            "weights of characters need; use the model's fast tokenizer"
        )
    offsets = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    found: list[Span | None] = []
    for start, end in offsets["offset_mapping"]:
        if start == end:
            found.append(found[-1] if found else None)
            continue
        found.append(next((s for s in spans if s.start <= end - 1 < s.end), None))
    return found


def severities(spans: Sequence[Span | None]) -> list[float]:
    """The weight of each token where answers are compared."""
    return [NEUTRAL if span is None else span.severity for span in spans]


def image_weights(spans: Sequence[Span | None]) -> list[float]:
    """The weight of each token where pictures are compared."""
    return [NEUTRAL if span is None else span.image for span in spans]


def ended(weights: Sequence[float], length: int, *, end: float) -> list[float]:
    """The weights of the tokens as they are scored: with an end token, or cut.

    Args:
        weights: Of the tokens of the text.
        length: How many tokens are scored.
        end: Weight of the end token.
    """
    assert length <= len(weights) + 1
    return [*weights, end][:length]


def changed(
    chosen: Sequence[int], rejected: Sequence[int], *, weight: float
) -> tuple[list[float], list[float]]:
    """The weights of the tokens of two answers: ``weight`` where they differ, 1 elsewhere.

    Both are compared as sequences of ids. Where one side lacks tokens that the other has, its
    neighbours of the gap count as changed.

    Returns:
        Of the chosen and of the rejected tokens.
    """
    sides: tuple[list[float], list[float]] = ([NEUTRAL] * len(chosen), [NEUTRAL] * len(rejected))
    matcher = SequenceMatcher(a=chosen, b=rejected, autojunk=False)
    for tag, *bounds in matcher.get_opcodes():
        if tag == "equal":
            continue
        for side, (start, stop) in zip(sides, (bounds[:2], bounds[2:]), strict=True):
            if start == stop:
                start, stop = max(start - 1, 0), min(stop + 1, len(side))
            side[start:stop] = [weight] * (stop - start)
    return sides
