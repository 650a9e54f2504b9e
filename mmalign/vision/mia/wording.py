"""What is said around a question that was asked of one picture and is now asked of one of many."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

LEAD_INS = (
    "In the picture in the middle",
    "Looking only at the small picture in the centre",
    "For the image that is set into the other one",
    "Regarding the inner picture",
    "With the central image in mind",
    "About the picture shown in the centre",
    "Judging by the image in the middle alone",
    "Leaving the surroundings aside and taking the inset picture",
    "In the smaller image at the centre",
    "Going by the picture that lies on top",
    "As for the image placed in the middle",
    "Considering the centre picture and not its background",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """The words of rewritten questions.

    Attributes:
        name: How a picture is called; ``{number}`` stands for its number, from 1.
        label: What stands before each picture of a sequence, ``{name}`` being its name; "" for
            nothing.
        after: What stands behind each picture of a sequence; "" for nothing.
        question: A question about one picture of several; ``{name}`` and ``{question}``.
        inset: A question about the picture in a picture; ``{lead_in}`` and ``{question}``.
        lead_ins: Phrases that mean "as regards the picture in the middle"; one is drawn for each
            row.
        refusal: The right answer to a question about a picture that is not there; ``{count}`` is
            how many there are, and ``{name}`` what was asked for.
        numbers: Names of the numbers from 1, where they are not written as digits.
        taken: Beginnings of questions that name a picture already, lower case; such rows are
            dropped.
    """

    name: str = "Image{number}"
    label: str = "{name}:"
    after: str = "\n"
    question: str = "In {name}, {question}"
    inset: str = "{lead_in}, {question}"
    lead_ins: tuple[str, ...] = LEAD_INS
    refusal: str = "Only {count} images were given, so there is no {name}."
    numbers: tuple[str, ...] = ()
    taken: tuple[str, ...] = ("in image",)

    def __post_init__(self) -> None:
        for key, known in _KNOWN.items():
            _check_template(key, getattr(self, key), known)
        if not self.lead_ins:
            raise ValueError("lead_ins must hold at least one phrase")

    def number(self, value: int) -> str:
        """The name of a number from 1.

        Raises:
            ValueError: ``numbers`` does not go so far.
        """
        if not self.numbers:
            return str(value)
        if value > len(self.numbers):
            raise ValueError(
                f"wording.numbers names {len(self.numbers)} numbers, and {value} is needed; name "
                "more, or use fewer pictures"
            )
        return self.numbers[value - 1]

    def named(self, index: int) -> str:
        """The name of the picture ``index``, from 1."""
        return self.name.format(number=self.number(index))

    def labelled(self, index: int) -> str:
        """What stands before the picture ``index`` of a sequence, from 1."""
        return self.label.format(name=self.named(index))

    def about(self, index: int, question: str) -> str:
        """A question about the picture ``index``, from 1."""
        return self.question.format(name=self.named(index), question=uncapitalised(question))

    def about_inset(self, lead_in: str, question: str) -> str:
        """A question about the picture in a picture."""
        return self.inset.format(lead_in=lead_in, question=uncapitalised(question))

    def missing(self, index: int, count: int) -> str:
        """The right answer to a question about picture ``index`` where there are only ``count``."""
        return self.refusal.format(count=self.number(count), name=self.named(index))

    def names_a_picture(self, question: str) -> bool:
        """Whether a question says already which picture it is about."""
        return question.lower().startswith(self.taken) if self.taken else False


def uncapitalised(question: str) -> str:
    """The question with its first character in lower case."""
    return question[:1].lower() + question[1:]


_KNOWN: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "name": (frozenset({"number"}), frozenset({"number"})),
    "label": (frozenset(), frozenset({"name"})),
    "question": (frozenset({"name", "question"}), frozenset({"name", "question"})),
    "inset": (frozenset({"question"}), frozenset({"lead_in", "question"})),
    "refusal": (frozenset(), frozenset({"count", "name"})),
}
"""By field, the places that a template must have and those that it may have."""


def _check_template(key: str, text: str, known: tuple[frozenset[str], frozenset[str]]) -> None:
    needed, allowed = known
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"wording.{key}={text!r} has a brace without its partner") from error
    for name in sorted(found - allowed):
        raise ValueError(
            f"wording.{key}={text!r} has a place {{{name}}}; known are {sorted(allowed)}"
        )
    for name in sorted(needed - found):
        raise ValueError(f"wording.{key}={text!r} must hold {{{name}}}")
