"""Batches of outputs to imitate: the source of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmalign import rng
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.sources import Order, restore_order, share_of
from mmalign.types import Batch


class DemonstrationSource:
    """Batches of prompts, each with the output that is right; every row has reward 1."""

    def __init__(self, spec: Demonstrations, policy: Policy, seed: int) -> None:
        self.spec, self.policy, self.seed = spec, policy, seed
        self.data = spec.data.demonstrations()
        if len(self.data) == 0:
            raise ValueError(f"the data set of the source holds no demonstration: {spec.data}")
        self.order = Order(
            size=len(self.data),
            batch_size=spec.batch_size,
            seed=seed,
            shuffle=spec.shuffle,
            keep_last=True,
        )

    def __iter__(self) -> Iterator[Batch]:
        while True:
            everything = self.order.next()
            mine = share_of(everything)
            # A process without a row still takes part in the gradient exchange, with one that
            # weighs nothing.
            batch = self._batch(mine or everything[-1:])
            yield batch if mine else replace(batch, weight=torch.zeros_like(batch.weight))

    def _batch(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        rows = [self.data[number] for _, number in chosen]
        trajectory = self.policy.adapter.encode(
            [prompt for prompt, _ in rows],
            [[output] for _, output in rows],
            generators=[
                rng.generator(self.seed, "encode", 0 if self.spec.fixed_noise else epoch, number)
                for epoch, number in chosen
            ],
        )
        return Batch(
            trajectory=trajectory,
            group=torch.arange(len(rows)),
            reward=torch.ones(len(rows)),
            weight=trajectory.mask.float(),
        ).to(trajectory.mask.device)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position."""
        return {"epoch": self.order.epoch, "position": self.order.position, "size": len(self.data)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position."""
        restore_order(self.order, state, len(self.data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
    """Prompts with outputs to imitate.

    Attributes:
        data: Where they come from; a file has them in its column ``completion``.
        batch_size: Rows of a global batch.
        shuffle: Whether each epoch is shuffled anew.
        fixed_noise: Whether a row keeps its (timestep, noise) draws in every epoch; no effect on
            models whose likelihood is exact.
    """

    data: DataSpec
    batch_size: int = 32
    shuffle: bool = True
    fixed_noise: bool = False

    def build(self, policy: Policy, *, seed: int) -> DemonstrationSource:
        """The source at its beginning."""
        return DemonstrationSource(self, policy, seed)
