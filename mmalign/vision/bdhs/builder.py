"""``mmalign data bdhs``: pairs of a right answer and one hallucinated by the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mmalign.data.building import Candidate
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Output, Preference, Prompt
from mmalign.vision.bdhs.hallucinating import Hallucinated, Recipe, hallucinate, require_means
from mmalign.vision.lvlm_policy import LVLMPolicy

NAME = "bdhs"


@dataclass(frozen=True, slots=True, kw_only=True)
class BDHS:
    """Right answers against answers that the model writes while it can hardly see the picture.

    Attributes:
        data: Prompts with right answers.
        policy: The model that is to be aligned.
        recipe: How rejected answers are made.
        rows_at_a_time: Rows whose pieces are completed together; no effect on what comes out.
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    recipe: Recipe = field(default_factory=Recipe)
    rows_at_a_time: int = 16

    def __post_init__(self) -> None:
        if self.rows_at_a_time < 1:
            raise ValueError(f"rows_at_a_time must be at least 1; got {self.rows_at_a_time}")

    def prepare(self, *, seed: int) -> Hallucinating:
        """Load the model and the data."""
        policy = self.policy.load().on_accelerator()
        require_means(policy, self.recipe)
        return Hallucinating(self, policy, self.data.demonstrations(), seed)


class Hallucinating:
    """The builder at work; see `mmalign.data.building.Construction`."""

    def __init__(
        self, spec: BDHS, policy: Policy, rows: Sequence[tuple[Prompt, Output]], seed: int
    ) -> None:
        self.spec, self.policy, self.rows, self.seed = spec, policy, rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """A pair for each row, or why there is none."""
        for first in range(start, len(self), self.spec.rows_at_a_time):
            numbers = range(first, min(first + self.spec.rows_at_a_time, len(self)))
            rows = [self.rows[number] for number in numbers]
            keys = [(self.seed, NAME, number) for number in numbers]
            made = hallucinate(self.policy, rows, self.spec.recipe, keys=keys)
            for number, row, found in zip(numbers, rows, made, strict=True):
                yield _candidate(row, found, number)


def _candidate(row: tuple[Prompt, Output], found: Hallucinated, number: int) -> Candidate:
    prompt, answer = row
    meta = {
        "builder": NAME,
        "row": number,
        "attempt": found.tries,
        "similarity": found.similarity,
        "accepted": found.accepted,
        "guided": found.guided,
    }
    pair = Preference(prompt=prompt, chosen=answer, rejected=found.text, meta=meta)
    return Candidate(preference=pair, row=number, dropped=found.dropped)
