"""From an expert's report to the corrected answer, and to weights on both answers' characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.experts import Report, Sentence
from mmalign.vision.opa.weights import NEUTRAL, Span

MAX_REPEATS = 30
IMAGE_ERROR = "image_recognition_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanWeights:
    """How heavy a sentence weighs.

    Attributes:
        severity: Of a sentence with score 1, 2, 3 and 4, on both sides of a pair of answers.
        image: Of a sentence that gets the picture wrong, in a pair of views.

    References:
        2501.09695; the numbers are those of the released code.
    """

    severity: tuple[float, float, float, float] = (2.5, 2.0, 1.5, 1.0)
    image: float = 3.0

    def __post_init__(self) -> None:
        if min(*self.severity, self.image) < 0:
            raise ValueError(f"weights must not be negative: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """An answer put right.

    Attributes:
        text: The corrected answer; "" where nothing was left of it.
        spans: Weights of its sentences.
        sampled: Weights of the sentences of the policy's answer.
        unmatched: How many sentences the expert quotes that the answer does not have; on the
            answer's side they weigh nothing extra.
    """

    text: str
    spans: tuple[Span, ...]
    sampled: tuple[Span, ...]
    unmatched: int


def revised(answer: str, report: Report, weights: SpanWeights) -> Revision:
    """The answer as the report rewrites it.

    The rewritten sentences are put one after the other, with the white space that stood between
    the sentences they replace, or a space. Every character of a sentence weighs the same, the white
    space between sentences 1.

    Args:
        answer: What the policy wrote.
        report: What the expert says of it.
        weights: Of sentences, by score and kind of fault; a sentence that is added weighs 1.
    """
    places = _places(answer, report.sentences)
    text, spans, sampled = "", [], []
    last: int | None = None
    for sentence, place in zip(report.sentences, places, strict=True):
        severity, image = _weights(sentence, weights)
        if place is not None:
            sampled.append(Span(*place, severity, image))
        words = sentence.rewritten.strip()
        if not words:
            continue
        gap = answer[last : place[0]] if place is not None and last is not None else " "
        text += (gap if gap and not gap.strip() else " ") if text else ""
        spans.append(Span(len(text), len(text) + len(words), severity, image))
        text += words
        last = None if place is None else place[1]
    return Revision(
        text=text,
        spans=tuple(spans),
        sampled=tuple(sorted(sampled)),
        unmatched=sum(
            place is None and sentence.copied is not None
            for sentence, place in zip(report.sentences, places, strict=True)
        ),
    )


def repetitive(answer: str) -> str | None:
    """Why a sampled answer is not worth correcting: it goes round in circles. None if it does not.

    Its last sentence, up to the last full stop, stands in what comes before it; or its last word
    occurs more than 30 times in what comes before the two last words.
    """
    sentences = answer.split(".")
    if len(sentences) > 1:
        last, before = sentences[-2].strip(), ".".join(sentences[:-2])
        if last and last in before:
            return "sentence repeated"
    words = answer.split()
    if words and words[:-2].count(words[-1]) > MAX_REPEATS:
        return "word repeated"
    return None


def _weights(sentence: Sentence, weights: SpanWeights) -> tuple[float, float]:
    if sentence.copied is None:
        return NEUTRAL, NEUTRAL
    severity = weights.severity[sentence.score - 1]
    return severity, weights.image if sentence.error == IMAGE_ERROR else NEUTRAL


def _places(answer: str, sentences: Sequence[Sentence]) -> list[tuple[int, int] | None]:
    """Where each quoted sentence stands in the answer, behind the one before it if it can be.

    No character belongs to two of them; None for what is added or not found.
    """
    found: list[tuple[int, int] | None] = []
    taken: list[tuple[int, int]] = []
    end = 0
    for sentence in sentences:
        words = "" if sentence.copied is None else sentence.copied.strip()
        place = _free(answer, words, taken, start=end) or _free(answer, words, taken, start=0)
        if place is not None:
            taken.append(place)
            end = place[1]
        found.append(place)
    return found


def _free(
    answer: str, words: str, taken: Sequence[tuple[int, int]], *, start: int
) -> tuple[int, int] | None:
    """The first place of ``words`` from ``start`` on that none of ``taken`` touches."""
    at = answer.find(words, start) if words else -1
    while at >= 0:
        end = at + len(words)
        if all(end <= left or right <= at for left, right in taken):
            return at, end
        at = answer.find(words, at + 1)
    return None
