"""Conquering: whether a claim holds, as a model that sees the picture says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch

from mmalign import rng
from mmalign.endpoint import Asker, Question
from mmalign.policy import Policy
from mmalign.types import Prompt
from mmalign.vision.asking import prompt_of

YES = ("yes", "Yes")
NO = ("no", "No")


class Checker(Protocol):
    """Says whether claims hold."""

    def holds(self, questions: Sequence[Question]) -> list[bool | None]:
        """A verdict for each question; None where there is none."""
        ...


class PolicyChecker:
    """Reads the verdict of a vision-language model off the probabilities of its first token.

    A claim holds where ``P("yes") + P("Yes") > P("no") + P("No")``, as in RLAIF-V's
    ``utils/pair_construction.py``. A word counts by its first token; one that both sides begin
    with says nothing and counts for neither.

    Args:
        policy: The model.
        batch_size: Questions in one forward pass.

    Raises:
        ValueError: The model's tokenizer does not tell yes from no.
    """

    def __init__(self, policy: Policy, *, batch_size: int) -> None:
        self.policy = policy
        self.batch_size = batch_size

    @torch.no_grad()
    def holds(self, questions: Sequence[Question]) -> list[bool | None]:
        """A verdict for each question."""
        found: list[bool | None] = []
        for start in range(0, len(questions), self.batch_size):
            part = questions[start : start + self.batch_size]
            prompts = [prompt_of(question) for question in part]
            found += [yes > no for yes, no in self.probabilities(prompts)]
        return found

    def probabilities(self, prompts: Sequence[Prompt]) -> list[tuple[float, float]]:
        """The probability that the first token says yes, and that it says no, for each prompt."""
        words = [*YES, *NO]
        trajectory = self.policy.adapter.encode(
            prompts, [words] * len(prompts), generators=[rng.generator(0) for _ in prompts]
        )
        with self.policy.autocast():
            log_probs = self.policy.scores(trajectory).log_probs
        first = log_probs[:, 0].exp().reshape(len(prompts), len(words)).tolist()
        tokens = trajectory.stepwise["token"][: len(words), 0].tolist()
        yes, no = set(tokens[: len(YES)]), set(tokens[len(YES) :])
        if not (yes - no and no - yes):
            raise ValueError(
                "the labeler's tokenizer begins 'yes' and 'no' with the same token, so its verdict "
                "cannot be read; use an `asker`"
            )
        chances = [dict(zip(tokens, row, strict=True)) for row in first]
        return [
            (sum(chance[t] for t in yes - no), sum(chance[t] for t in no - yes))
            for chance in chances
        ]


class AskerChecker:
    """Reads the verdict off an answer in words, which must begin with yes or no.

    Args:
        asker: Who answers.
    """

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    def holds(self, questions: Sequence[Question]) -> list[bool | None]:
        """A verdict for each question; None where the answer begins with neither word."""
        return [verdict(answer) for answer in self.asker.ask(questions)] if questions else []


def verdict(answer: str) -> bool | None:
    """True for an answer whose first word is yes, False for no, None for any other."""
    word = re.search(r"[a-z]+", answer.lower())
    return {"yes": True, "no": False}.get(word.group()) if word else None
