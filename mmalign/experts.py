"""Experts: whoever judges what a policy wrote, sentence by sentence, and corrects it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

from mmalign.types import Prompt

ErrorType = Literal["correct", "image_recognition_error", "language_comprehension_error"]
SCORES = (1, 2, 3, 4)
ADDED = "Added"
"""In place of a quoted sentence: the expert adds one that says what the answer left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An answer to be corrected.

    Attributes:
        row: Number of its row in the data.
        prompt: What was asked, with the pictures.
        truth: An answer that is right.
        answer: What the policy wrote.
    """

    row: int
    prompt: Prompt
    truth: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """What an expert says of a sentence.

    Attributes:
        copied: The sentence as the answer has it; None for one that the expert adds.
        score: 4 without fault, 3 a minor one, 2 a substantial one, 1 nothing to do with the
            picture or the question.
        error: What kind of fault.
        rewritten: The sentence put right with the least change, the same where nothing was wrong;
            "" to leave it out.
        object: What the fault is about, or "".
        reason: In the expert's words, or "".
    """

    copied: str | None
    score: int
    error: ErrorType
    rewritten: str
    object: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an expert says of an answer.

    Attributes:
        sentences: In the order of the corrected answer.
        description: What the expert sees in the pictures, or "".
    """

    sentences: tuple[Sentence, ...]
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The report on a draft, or why there is none.

    Attributes:
        report: None where the expert gave none that could be read.
        problem: Why, in two or three words that are the same for the same reason.
        raw: What the expert wrote, word for word, where it writes.
    """

    report: Report | None
    problem: str | None = None
    raw: str = ""

    def __post_init__(self) -> None:
        assert (self.report is None) == (self.problem is not None)


@runtime_checkable
class Expert(Protocol):
    """Settings of someone who corrects answers."""

    def revise(self, drafts: Sequence[Draft]) -> list[Verdict]:
        """One verdict a draft, in order; what one gets depends on no other draft.

        Raises:
            ValueError: The expert cannot judge these prompts at all.
        """
        ...


class ReportError(ValueError):
    """A report that cannot be used."""


def parse_report(text: str) -> Report:
    """The report in an expert's answer: a JSON object, bare or in one code fence.

    Raises:
        ReportError: It is something else, saying what is wrong with it.
    """
    inner = text.strip()
    if inner.startswith("```") and inner.endswith("```") and "\n" in inner:
        inner = inner.partition("\n")[2].removesuffix("```")
    try:
        found = json.loads(inner)
    except ValueError as error:
        raise ReportError(f"it is not JSON ({error})") from error
    return report_of(found)


def report_of(value: Any) -> Report:
    """A report as JSON has it: ``{"image_description", "sentences": [{"copied_content", ...}]}``.

    Raises:
        ReportError: A key is missing or holds something else than it should.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("sentences"), list):
        raise ReportError('it is no object with a list "sentences"')
    sentences = [_sentence(item, number) for number, item in enumerate(value["sentences"], 1)]
    return Report(
        sentences=tuple(sentences),
        description=_text(value, "image_description", "the report", default=""),
    )


def described(report: Report) -> dict[str, Any]:
    """A report as `report_of` reads it."""
    return {
        "image_description": report.description,
        "sentences": [
            {
                "copied_content": ADDED if one.copied is None else one.copied,
                "score": one.score,
                "error_type": one.error,
                "object": one.object,
                "rewritten_content": one.rewritten,
                "reason": one.reason,
            }
            for one in report.sentences
        ],
    }


def _sentence(value: Any, number: int) -> Sentence:
    where = f"sentence {number}"
    if not isinstance(value, Mapping):
        raise ReportError(f"{where} is no object")
    score, error = value.get("score"), value.get("error_type")
    if score not in SCORES or isinstance(score, bool):
        raise ReportError(f'{where}: "score" is {score!r}; it must be 1, 2, 3 or 4')
    if error not in get_args(ErrorType):
        known = ", ".join(get_args(ErrorType))
        raise ReportError(f'{where}: "error_type" is {error!r}; it must be one of {known}')
    copied = _text(value, "copied_content", where)
    if not copied.strip():
        raise ReportError(f'{where}: "copied_content" is empty; it must quote the answer')
    added = copied.strip().rstrip(":.").casefold() == ADDED.casefold()
    return Sentence(
        copied=None if added else copied,
        score=int(score),
        error=cast(ErrorType, error),
        rewritten=_text(value, "rewritten_content", where),
        object=_text(value, "object", where, default=""),
        reason=_text(value, "reason", where, default=""),
    )


def _text(value: Mapping[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    found = value.get(key, default)
    if found is None and default is not None:
        return default
    if not isinstance(found, str):
        raise ReportError(f'{where}: "{key}" must be text, not {found!r:.40}')
    return found
