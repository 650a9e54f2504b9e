"""Dividing: what an answer claims, and the yes-or-no question that each claim becomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.endpoint import Asker, Question
from mmalign.text.sentences import sentences

CLAIM = "{claim}"
STATED = 'Is this statement about the picture true? "{claim}" Please answer yes or no.'
ASKED = "{claim} Please answer yes or no."

_DIVIDE = """\
Below are a question about a picture and an answer to it. List every fact that the answer states \
about the picture, each as one sentence that can be understood on its own. Leave out opinions. \
Write one fact a line, each line beginning with "- ", and nothing else. If the answer states no \
fact, write "none".

Question: {question}
Answer: {answer}"""

_TURN = """\
Turn each of these statements into a question that is answered with yes exactly when the \
statement is true. Keep the tense and every negation, and add nothing. Write one question a line, \
in the same order, each line beginning with "- ", and nothing else.

{facts}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A part of an answer that is true or not.

    Attributes:
        text: As it was said.
        question: Answered with yes where it is true.
    """

    text: str
    question: str


def by_sentence(answers: Sequence[str], template: str) -> list[list[Claim]]:
    """A claim for each sentence of each answer."""
    return [[_claim(one.strip(), template) for one in sentences(text)] for text in answers]


def by_pattern(answers: Sequence[str], template: str, pattern: str) -> list[list[Claim]]:
    """A claim for each match of a regular expression in each answer."""
    return [[_claim(m.group(), template) for m in re.finditer(pattern, text)] for text in answers]


def by_asking(
    question: str, answers: Sequence[str], template: str, asker: Asker
) -> list[list[Claim] | None]:
    """The claims that a language model finds: it lists the facts, then turns them into questions.

    Args:
        question: What the answers answer.
        answers: The answers.
        template: What becomes of each question.
        asker: The language model; it sees no picture.

    Returns:
        The claims of each answer; None where facts and questions differ in number.
    """
    asked = [Question(text=_DIVIDE.format(question=question, answer=text)) for text in answers]
    facts = [_listed(text) for text in asker.ask(asked)]
    some = [number for number, found in enumerate(facts) if found]
    lists = ["\n".join(f"- {fact}" for fact in facts[number]) for number in some]
    turned = asker.ask([Question(text=_TURN.format(facts=one)) for one in lists]) if some else []
    claims: list[list[Claim] | None] = [[] for _ in answers]
    for number, text in zip(some, turned, strict=True):
        questions = _listed(text)
        claims[number] = (
            [
                Claim(text=fact, question=template.replace(CLAIM, one))
                for fact, one in zip(facts[number], questions, strict=True)
            ]
            if len(questions) == len(facts[number])
            else None
        )
    return claims


def _claim(text: str, template: str) -> Claim:
    return Claim(text=text, question=template.replace(CLAIM, text))


def _listed(text: str) -> list[str]:
    """The items of a list; lines that are none are left out, such as "Here they are:"."""
    lines = (line.strip() for line in text.splitlines())
    return [line[1:].strip() for line in lines if line[:1] in ("-", "*") and line[1:].strip()]
