"""Batches of outputs to imitate: the source of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mmalign import rng
from mmalign.blame import naming, where
from mmalign.epochs import WalkingSource, Where
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Batch, Output, Preference, Prompt


class DemonstrationSource(WalkingSource):
    """Batches of prompts, each with the output that is right; every row has reward 1."""

    def __init__(self, spec: Demonstrations, policy: Policy, seed: int) -> None:
        self.spec, self.policy = spec, policy
        self.data: Sequence[tuple[Prompt, Output]] | Sides
        if spec.of == "demonstrations":
            self.data = spec.data.demonstrations()
        else:
            self.data = Sides(spec.data.preferences(), rejected=spec.of == "rejected")
        super().__init__(spec, size=len(self.data), holds=f"demonstration: {spec.data}", seed=seed)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The rows at these places, each a group of its own."""
        chosen = [everything[place] for place in places]
        numbers = [number for _, number in chosen]
        rows = [self.data[number] for number in numbers]
        with naming(self.data, prompts=numbers, rows=[(n, "completion") for n in numbers]):
            trajectory = self.policy.adapter.encode(
                [prompt for prompt, _ in rows],
                [[output] for _, output in rows],
                generators=[
                    rng.generator(
                        self.seed, "encode", 0 if self.spec.fixed_noise else epoch, number
                    )
                    for epoch, number in chosen
                ],
            )
        return Batch(
            trajectory=trajectory,
            group=torch.arange(len(rows)),
            reward=torch.ones(len(rows)),
            weight=trajectory.mask.float(),
        ).to(trajectory.mask.device)


class Sides:
    """One side of each of a data set's pairs, under the prompt that it answered."""

    def __init__(self, pairs: Sequence[Preference], *, rejected: bool) -> None:
        self.pairs, self.rejected = pairs, rejected

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[Prompt, Output]:
        pair = self.pairs[number]
        if not self.rejected:
            return pair.prompt, pair.chosen
        return pair.rejected_prompt or pair.prompt, pair.rejected

    def where(self, number: int) -> str:
        """The place of the pair."""
        return where(self.pairs, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """Prompts with outputs to imitate.

    Attributes:
        data: Where they come from; a file has them in its column ``completion``.
        batch_size: Rows of a global batch.
        shuffle: Whether each epoch is shuffled anew.
        fixed_noise: Whether a row keeps its (timestep, noise) draws in every epoch; no effect on
            models whose likelihood is exact.
        of: What is imitated: the data's demonstrations, or one side of its pairs. "rejected" trains
            a model of wrong outputs, which critical-token DPO contrasts with one of right ones.
    """

    data: DataSpec
    batch_size: int = 32
    shuffle: bool = True
    fixed_noise: bool = False
    of: Literal["demonstrations", "chosen", "rejected"] = "demonstrations"

    def build(self, policy: Policy, *, seed: int) -> DemonstrationSource:
        """The source at its beginning."""
        return DemonstrationSource(self, policy, seed)
