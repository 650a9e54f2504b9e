"""Assessing chains at two granularities: is the answer right, and how good is the reasoning.

After Insight-V (2411.14432): a language model compares the final answer with the right one (the
released ``data_check.py``); the chains with a right answer are then scored 1 to 100, all those of a
question in one request, so that their scores can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.endpoint import Asker, Question
from mmalign.types import Prompt
from mmalign.vision.asking import asked_of
from mmalign.vision.insight.agents import Agent, Place
from mmalign.vision.insight.chains import AGAIN, Chain

ALL = -1
"""The chain number of what is said of all chains of a row."""
WRONG = 0.0
"""The score of a chain with a wrong answer; right ones have 1 to 100."""

_SAME = """\
Do these two answers to the question mean the same? The wording and the form may differ. Reply \
with 1 if they do and with 0 if they do not, and with nothing else.

Question: {question}
Right answer: {right}
Other answer: {answer}"""

_SCORE = """\
Below are a question about the picture and {count} chains of reasoning, all of which come to the \
right answer. Score each from 1 to 100: are its steps correct, do they follow from each other and \
from what the picture shows, and are they detailed enough? Use the whole scale, and compare the \
chains with each other. Reply with a JSON list of {count} whole numbers, in the order of the \
chains, and with nothing else.

Question: {question}

{chains}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """A chain and what it is worth.

    Attributes:
        chain: The chain.
        right: Whether its answer is; None where it came to nothing, or the check cannot be read.
        score: 1 to 100 of a right chain, 0 of a wrong one; None where there is none.
    """

    chain: Chain
    right: bool | None
    score: float | None

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "steps": [step.described() for step in self.chain.steps],
            "written": self.chain.written(),
            "answer": self.chain.answer,
            "flaw": self.chain.flaw,
            "right": self.right,
            "score": self.score,
        }


def checked(
    chains: Sequence[Chain], prompt: Prompt, right: str, checker: Asker | None
) -> list[bool | None]:
    """Whether each chain's answer is right.

    Args:
        chains: Of one prompt.
        prompt: Its question.
        right: The right answer.
        checker: Says whether two answers mean the same; None compares their words, without
            capitals, punctuation or articles.

    Returns:
        None for a chain that came to nothing, or a reply that is neither 1 nor 0.
    """
    whole = [i for i, chain in enumerate(chains) if chain.flaw is None]
    found: list[bool | None] = [None] * len(chains)
    if checker is None:
        for i in whole:
            found[i] = normalised(chains[i].answer) == normalised(right)
        return found
    question = asked_of(prompt)
    asked = [
        Question(text=_SAME.format(question=question, right=right, answer=chains[i].answer))
        for i in whole
    ]
    for i, reply in zip(whole, checker.ask(asked) if asked else [], strict=True):
        verdict = re.fullmatch(r"\W*([01])\W*", reply)
        found[i] = None if verdict is None else verdict.group(1) == "1"
    return found


def scored(
    chains: Sequence[Chain], prompt: Prompt, row: int, judge: Agent, *, attempts: int
) -> list[float] | None:
    """A score from 1 to 100 for each of a prompt's right chains, from one request.

    Returns:
        None where no attempt gave a list of so many numbers.
    """
    parts = [f"Chain {n}:\n{chain.written()}" for n, chain in enumerate(chains, start=1)]
    text = _SCORE.format(count=len(chains), question=asked_of(prompt), chains="\n\n".join(parts))
    for attempt in range(attempts):
        asked = Question(text=f"{text}\n\n{AGAIN}" if attempt else text, images=prompt.images)
        (reply,) = judge.answer([asked], [Place(row, ALL, 0, attempt)])
        scores = read_scores(reply, len(chains))
        if scores is not None:
            return scores
    return None


def read_scores(reply: str, count: int) -> list[float] | None:
    """The list of ``count`` numbers from 1 to 100 that stands in a reply; None where none does."""
    listed = re.search(r"\[[^\[\]]*\]", reply)
    try:
        found = json.loads(listed.group()) if listed else None
    except json.JSONDecodeError:
        return None
    if not isinstance(found, list) or len(found) != count:
        return None
    if any(isinstance(one, bool) or not isinstance(one, int | float) for one in found):
        return None
    return [float(one) for one in found] if all(1 <= one <= 100 for one in found) else None


def normalised(answer: str) -> str:
    """The words of an answer, without capitals, punctuation or articles."""
    words = re.findall(r"[^\W_]+(?:[.'][^\W_]+)*", answer.casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))
