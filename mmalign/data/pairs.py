"""Pairs of a policy's own outputs, ordered by a reward: preference data without people.

Several outputs are sampled for each prompt and judged, and a selector pairs them. It works for
every modality, since the policy samples and the selector sees rewards alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mmalign import pairing, rng
from mmalign.data.building import Candidate
from mmalign.policy import Policy
from mmalign.protocols import RewardModel, Selector
from mmalign.rewards import judged
from mmalign.run import DataSpec, PolicySpec
from mmalign.selectors import BestWorst
from mmalign.types import Batch, Output, Preference, Prompt

NAME = "pairs"
EMPTY = "empty answer"
IDENTICAL = "identical sides"
NOT_PAIRED = "not paired"
REASONS = {
    pairing.TIES: "tie",
    pairing.MARGIN: "small margin",
    pairing.IDENTICAL: IDENTICAL,
    pairing.SINGLE: NOT_PAIRED,
}
"""What a selector counts, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPairs:
    """A policy's own outputs in pairs: several a prompt, the best over the worst by a reward.

    Attributes:
        data: Prompts; its answers are not looked at.
        policy: Samples, with its own settings of sampling.
        reward: Judges the outputs; a failure of it is an error, never a 0.
        num_generations: Outputs of each prompt.
        selector: Makes the pairs of a prompt's outputs; its ``min_margin`` is a threshold in reward
            units, and equal rewards never make a pair.
        batch_size: Prompts sampled at a time.
    """

    data: DataSpec
    policy: PolicySpec
    reward: RewardModel
    num_generations: int = 8
    selector: Selector = field(default_factory=BestWorst)
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations={self.num_generations} leaves nothing to compare; use 2 or more"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def prepare(self, *, seed: int) -> Sampling:
        """Load the policy, open the data.

        Raises:
            ValueError: The data holds no prompt, or the policy cannot be loaded.
        """
        prompts = self.data.prompts()
        if len(prompts) == 0:
            raise ValueError(f"the data set holds no prompt: {self.data}")
        return Sampling(self, prompts=prompts, policy=self.policy.load(), seed=seed)


class Sampling:
    """`SampledPairs` at work.

    Args:
        settings: Of the builder.
        prompts: One a row.
        policy: Samples.
        seed: Of every draw.
    """

    def __init__(
        self, settings: SampledPairs, *, prompts: Sequence[Prompt], policy: Policy, seed: int
    ) -> None:
        self.settings, self.prompts, self.policy, self.seed = settings, prompts, policy, seed

    def __len__(self) -> int:
        return len(self.prompts)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """The pairs of each row, or one dropped candidate.

        Rows are sampled in the same blocks wherever it starts: what stands beside a row in a
        forward pass may move its last bits, and so a sample.
        """
        size = self.settings.batch_size
        for first in range(start - start % size, len(self), size):
            rows = range(first, min(first + size, len(self)))
            batch = self._sampled(rows)
            for place, row in enumerate(rows):
                if row >= start:
                    yield from self._row(batch, place, row)

    def _sampled(self, rows: Sequence[int]) -> Batch:
        """The judged samples of these rows, a group each."""
        size = self.settings.num_generations
        prompts = [self.prompts[row] for row in rows]
        generators = [rng.generator(self.seed, NAME, row) for row in rows]
        trajectory = self.policy.sample(prompts, group_size=size, generators=generators)
        outputs = [output for output in trajectory.outputs if output is not None]
        assert len(outputs) == len(trajectory), "an adapter's sample() must decode every output"
        reward = judged(self.settings.reward, [p for p in prompts for _ in range(size)], outputs)
        trajectory = trajectory.to("cpu")
        return Batch(
            trajectory=trajectory,
            group=torch.arange(len(rows)).repeat_interleave(size),
            reward=reward,
            weight=trajectory.mask.float(),
        )

    def _row(self, batch: Batch, place: int, row: int) -> Iterator[Candidate]:
        size = self.settings.num_generations
        group = batch.rows(torch.arange(place * size, (place + 1) * size))
        paired = self.settings.selector(group)
        if paired.pairs is None:
            raise ValueError(
                f"the selector {type(self.settings.selector).__name__} makes no pairs; use one "
                "that does, such as `type: best_worst`"
            )
        rewards = group.reward.tolist()
        if len(paired.pairs) == 0:
            # Shown with what would have been compared: the best and the worst, the first where
            # they are equal.
            order = sorted(range(size), key=rewards.__getitem__, reverse=True)
            yield self._candidate(group, (order[0], order[-1]), row, rewards, _reason(paired))
        for chosen, rejected in paired.pairs.tolist():
            yield self._candidate(paired, (chosen, rejected), row, rewards, None)

    def _candidate(
        self,
        batch: Batch,
        pair: tuple[int, int],
        row: int,
        rewards: Sequence[float],
        dropped: str | None,
    ) -> Candidate:
        chosen, rejected = (_output(batch, side) for side in pair)
        earned = [float(batch.reward[side]) for side in pair]
        meta: dict[str, Any] = {
            "builder": NAME,
            "row": row,
            "chosen_reward": earned[0],
            "rejected_reward": earned[1],
            "rewards": list(rewards),
        }
        preference = Preference(
            prompt=self.prompts[row],
            chosen=chosen,
            rejected=rejected,
            margin=earned[0] - earned[1],
            meta=meta,
        )
        return Candidate(preference=preference, row=row, dropped=dropped or _flaw(chosen, rejected))


def _output(batch: Batch, row: int) -> Output:
    output = batch.trajectory.outputs[row]
    assert output is not None
    return output


def _reason(batch: Batch) -> str:
    """Why a selector made no pair of a group, by what it counted."""
    counted = [reason for name, reason in REASONS.items() if batch.counters.get(name)]
    return counted[0] if counted else NOT_PAIRED


def _flaw(chosen: Output, rejected: Output) -> str | None:
    """Why a pair that earned different rewards is still not worth training on."""
    if any(isinstance(side, str) and not side.strip() for side in (chosen, rejected)):
        return EMPTY
    # Only a judge that is not deterministic gives one output two rewards. PIL compares pixels.
    return IDENTICAL if chosen == rejected else None
