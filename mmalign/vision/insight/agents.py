"""Who writes and judges chains: a model behind an endpoint, or one that is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from mmalign import rng
from mmalign.endpoint import Asker, Endpoint, Question
from mmalign.policy import Policy
from mmalign.vision.asking import prompt_of
from mmalign.vision.completing import Decoding, complete

NAME = "insight-v"
MAX_SEED = 2**31
"""Servers take seeds below this."""


class Place(NamedTuple):
    """Where a question belongs; what is drawn for it depends on this and on the question alone.

    Attributes:
        row: Of the data.
        chain: Of the row; -1 for what is said of all of them.
        step: Of the chain.
        attempt: At this step.
    """

    row: int
    chain: int
    step: int
    attempt: int


@runtime_checkable
class Seeded(Protocol):
    """An `Asker` whose answers depend on a seed."""

    def seeded(self, seed: int) -> Asker:
        """The same with this seed."""
        ...


class Agent(Protocol):
    """Answers questions, each at its place."""

    def answer(self, questions: Sequence[Question], places: Sequence[Place]) -> list[str]:
        """One text for each question, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AskerAgent:
    """A model elsewhere, which is told a seed for each chain and attempt.

    Without one, an asker that keeps its answers would write the same chain each time. An endpoint
    is told it in the field ``seed`` of the request, others by `Seeded`; one that is neither is
    asked as it is.

    Attributes:
        asker: Who is asked.
        seed: Of the construction.
    """

    asker: Asker
    seed: int

    def answer(self, questions: Sequence[Question], places: Sequence[Place]) -> list[str]:
        """One text for each question, in order."""
        found = [""] * len(questions)
        for key in dict.fromkeys((place.chain, place.attempt) for place in places):
            numbers = [i for i, place in enumerate(places) if (place.chain, place.attempt) == key]
            asker = seeded(self.asker, rng.seed_of(self.seed, NAME, *key) % MAX_SEED)
            replies = asker.ask([questions[i] for i in numbers])
            for number, reply in zip(numbers, replies, strict=True):
                found[number] = reply
        return found


def seeded(asker: Asker, seed: int) -> Asker:
    """The asker with a seed, where it takes one."""
    if isinstance(asker, Endpoint):
        return replace(asker, extra={**asker.extra, "seed": seed})
    return asker.seeded(seed) if isinstance(asker, Seeded) else asker


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAgent:
    """A model that is loaded here.

    Attributes:
        policy: The model.
        decoding: How its answers are drawn.
        seed: Of the construction.
        batch_size: Questions in one forward pass.
    """

    policy: Policy
    decoding: Decoding
    seed: int
    batch_size: int

    def answer(self, questions: Sequence[Question], places: Sequence[Place]) -> list[str]:
        """One text for each question, in order."""
        drawn = complete(
            self.policy,
            [prompt_of(question) for question in questions],
            decoding=self.decoding,
            generators=[rng.generator(self.seed, NAME, *place) for place in places],
            batch_size=self.batch_size,
        )
        return [one.text for one in drawn]
