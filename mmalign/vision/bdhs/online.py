"""BDHS while training: the rejected answers are those of the policy as it is now.

Online pairs alone, one drawn for each example from its recorded and its online pair (mixed), or
both with weights (averaged). All are one iterator, and a rule that says what an example gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from mmalign import rng
from mmalign.epochs import WalkingSource, Where
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Batch, Output, Prompt
from mmalign.vision.bdhs.hallucinating import Hallucinated, Recipe, hallucinate, require_means

NAME = "bdhs_online"
DROPPED = "dropped/bdhs"
"""The counter of examples to which no rejected answer could be made."""

Rule: TypeAlias = Callable[[Where], tuple[float, float]]
"""The coefficients of an example's recorded pair and of its online pair; 0 for no such pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt with its right answer and, where there is one, a recorded rejected answer.

    Attributes:
        prompt: Of the right answer, and of the online rejected one.
        chosen: The right answer.
        rejected: The recorded one, or None.
        rejected_prompt: Its prompt where it differs.
    """

    prompt: Prompt
    chosen: Output
    rejected: Output | None = None
    rejected_prompt: Prompt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What all these sources have in common.

    Attributes:
        examples: The data.
        recipe: How rejected answers are made.
        rule: What an example gives.
        batch_size: Examples of a global batch.
        shuffle: Whether each epoch is shuffled anew.
        seed: Of all draws.
    """

    examples: Sequence[Example]
    recipe: Recipe
    rule: Rule
    batch_size: int
    shuffle: bool
    seed: int


class BDHSSource(WalkingSource):
    """Batches of pairs; a group is an example, its chosen answer first."""

    def __init__(self, policy: Policy, walk: Walk) -> None:
        require_means(policy, walk.recipe)
        self.policy, self.walk = policy, walk
        super().__init__(walk, size=len(walk.examples), holds="right answer", seed=walk.seed)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The pairs of the examples at these places."""
        chosen = [everything[place] for place in places]
        coefficients = [self.walk.rule(where) for where in chosen]
        online = [where for where, (_, live) in zip(chosen, coefficients, strict=True) if live != 0]
        made = dict(zip(online, self._hallucinated(online), strict=True))
        rows = _Rows()
        for where, (recorded, live) in zip(chosen, coefficients, strict=True):
            rows.add(
                self.walk.examples[where[1]],
                recorded=recorded,
                live=live,
                made=made.get(where),
                key=(self.walk.seed, "encode", *where),
            )
        return rows.batch(self.policy, list(made.values()))

    def _hallucinated(self, where: Sequence[Where]) -> list[Hallucinated]:
        examples = [self.walk.examples[number] for _, number in where]
        return hallucinate(
            self.policy,
            [(example.prompt, example.chosen) for example in examples],
            self.walk.recipe,
            keys=[(self.walk.seed, NAME, *one) for one in where],
        )


@dataclass(slots=True, kw_only=True)
class _Rows:
    """A batch that grows example by example.

    Attributes:
        prompts: Of the rows, and
        outputs: the rows of each.
        keys: Of each prompt's draws.
        group: The example of each row.
        reward: 1 for the chosen answer, 0 for the others.
        pairs: Row numbers.
        coefficient: Of each pair.
    """

    prompts: list[Prompt] = field(default_factory=list)
    outputs: list[list[Output]] = field(default_factory=list)
    keys: list[tuple[rng.Key, ...]] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    coefficient: list[float] = field(default_factory=list)

    def add(
        self,
        example: Example,
        *,
        recorded: float,
        live: float,
        made: Hallucinated | None,
        key: tuple[rng.Key, ...],
    ) -> None:
        """The rows and pairs of an example, the chosen answer once."""
        beside: list[Output] = []
        apart: list[Output] = []
        weights = []
        if live != 0 and made is not None and made.dropped is None:
            beside.append(made.text)
            weights.append(live)
        if recorded != 0:
            assert example.rejected is not None
            (beside if example.rejected_prompt is None else apart).append(example.rejected)
            weights.append(recorded)
        first, number = len(self.group), self.group[-1] + 1 if self.group else 0
        sides = [(example.prompt, [example.chosen, *beside])]
        if apart:
            assert example.rejected_prompt is not None
            sides.append((example.rejected_prompt, apart))
        for prompt, outputs in sides:
            self.prompts.append(prompt)
            self.outputs.append(outputs)
            self.keys.append(key)
        self.group += [number] * (1 + len(weights))
        self.reward += [1.0, *[0.0] * len(weights)]
        self.pairs += [(first, first + 1 + i) for i in range(len(weights))]
        self.coefficient += weights

    def batch(self, policy: Policy, made: Sequence[Hallucinated]) -> Batch:
        """The rows, encoded; an example that gave no pair keeps its chosen answer, unpaired."""
        trajectory = policy.adapter.encode(
            self.prompts, self.outputs, generators=[rng.generator(*key) for key in self.keys]
        )
        good = [one for one in made if one.dropped is None]
        tried = [one for one in made if one.tries]
        return Batch(
            trajectory=trajectory,
            group=torch.tensor(self.group),
            reward=torch.tensor(self.reward),
            weight=trajectory.mask.float(),
            pairs=torch.tensor(self.pairs, dtype=torch.int64).view(-1, 2),
            coefficient=torch.tensor(self.coefficient),
            counters={DROPPED: float(len(made) - len(good))},
            metrics={
                "bdhs/tries": (float(sum(one.tries for one in tried)), float(len(tried))),
                "bdhs/accepted": (float(sum(one.accepted for one in tried)), float(len(tried))),
                "bdhs/similarity": (sum(one.similarity for one in tried), float(len(tried))),
            },
        ).to(trajectory.mask.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineBDHS:
    """Right answers against what the policy, as it is now, writes half blind.

    Attributes:
        data: Prompts with right answers.
        recipe: How rejected answers are made.
        batch_size: Pairs of a global batch.
        shuffle: Whether each epoch is shuffled anew.
    """

    data: DataSpec
    recipe: Recipe = field(default_factory=Recipe)
    batch_size: int = 32
    shuffle: bool = True

    def build(self, policy: Policy, *, seed: int) -> BDHSSource:
        """The source at its beginning."""
        rows = self.data.demonstrations()
        return BDHSSource(
            policy,
            Walk(
                examples=[Example(prompt=prompt, chosen=answer) for prompt, answer in rows],
                recipe=self.recipe,
                rule=lambda _: (0.0, 1.0),
                batch_size=self.batch_size,
                shuffle=self.shuffle,
                seed=seed,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedBDHS:
    """For each example its recorded pair, or with probability ``1 - p`` an online one.

    Attributes:
        data: Recorded pairs; their chosen answers are the right ones.
        recipe: How online rejected answers are made.
        p: Probability of the recorded pair, drawn anew in each epoch.
        batch_size: Pairs of a global batch.
        shuffle: Whether each epoch is shuffled anew.

    References:
        2407.02477, mixed DPO.
    """

    data: DataSpec
    recipe: Recipe = field(default_factory=Recipe)
    p: float = 0.5
    batch_size: int = 32
    shuffle: bool = True

    def __post_init__(self) -> None:
        _check_share("p", self.p)

    def build(self, policy: Policy, *, seed: int) -> BDHSSource:
        """The source at its beginning."""

        def rule(where: Where) -> tuple[float, float]:
            chance = float(torch.rand((), generator=rng.generator(seed, "mixed", *where)))
            return (1.0, 0.0) if chance < self.p else (0.0, 1.0)

        return BDHSSource(
            policy,
            Walk(
                examples=_recorded(self.data),
                recipe=self.recipe,
                rule=rule,
                batch_size=self.batch_size,
                shuffle=self.shuffle,
                seed=seed,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedBDHS:
    """Both pairs of each example: ``gamma L(recorded) + (1 - gamma) L(online)``.

    Attributes:
        data: Recorded pairs; their chosen answers are the right ones.
        recipe: How online rejected answers are made.
        gamma: Weight of the recorded pair.
        batch_size: Examples of a global batch.
        shuffle: Whether each epoch is shuffled anew.

    References:
        2407.02477, averaged DPO.
    """

    data: DataSpec
    recipe: Recipe = field(default_factory=Recipe)
    gamma: float = 0.5
    batch_size: int = 32
    shuffle: bool = True

    def __post_init__(self) -> None:
        _check_share("gamma", self.gamma)

    def build(self, policy: Policy, *, seed: int) -> BDHSSource:
        """The source at its beginning."""
        return BDHSSource(
            policy,
            Walk(
                examples=_recorded(self.data),
                recipe=self.recipe,
                rule=lambda _: (self.gamma, 1.0 - self.gamma),
                batch_size=self.batch_size,
                shuffle=self.shuffle,
                seed=seed,
            ),
        )


def _recorded(data: DataSpec) -> list[Example]:
    return [
        Example(
            prompt=pair.prompt,
            chosen=pair.chosen,
            rejected=pair.rejected,
            rejected_prompt=pair.rejected_prompt,
        )
        for pair in data.preferences()
    ]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be 0 to 1; got {value}")
