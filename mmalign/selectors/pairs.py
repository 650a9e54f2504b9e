"""Selectors that make one pair of each group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import pairing, rng
from mmalign.types import Batch

Other = Callable[[Tensor, Tensor], int]
"""Judged rows of a group and their rewards -> the row the best one is paired with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestWorst:
    """The best and the worst row of each group become a pair; nothing else is kept.

    Attributes:
        min_margin: A group whose rewards spread no further than this makes no pair (reward units).
            Equal rewards never do.
    """

    min_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.min_margin < 0:
            raise ValueError(f"min_margin={self.min_margin} must not be negative")

    def __call__(self, batch: Batch) -> Batch:
        """The paired rows, with counters of what was dropped."""
        return _one_pair_a_group(batch, _worst, self.min_margin)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRandom:
    """The best row of each group is paired with a random one of those that earned less.

    The draw is a function of the seed and of the group's rewards, so it depends on neither the
    order of the groups nor the number of processes.

    Attributes:
        seed: Of the draws.
        min_margin: The other row must have earned less by more than this (reward units).
    """

    seed: int = 0
    min_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.min_margin < 0:
            raise ValueError(f"min_margin={self.min_margin} must not be negative")

    def __call__(self, batch: Batch) -> Batch:
        """The paired rows, with counters of what was dropped."""
        return _one_pair_a_group(batch, self._random, self.min_margin)

    def _random(self, rows: Tensor, reward: Tensor) -> int:
        below = rows[reward.max() - reward > self.min_margin]
        values = ",".join(str(v) for v in reward.tolist())
        return int(below[rng.python_random(self.seed, "best_random", values).randrange(len(below))])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepAll:
    """Every row is kept and nothing is paired: for objectives that compare whole groups.

    A pairwise objective then pairs every two rows of a group that earned differently.
    """

    def __call__(self, batch: Batch) -> Batch:
        """The batch itself."""
        return batch


def _worst(rows: Tensor, reward: Tensor) -> int:
    return int(rows[reward.argmin()])


def _one_pair_a_group(batch: Batch, other: Other, min_margin: float) -> Batch:
    reward = pairing.scalar_reward(batch)
    found: list[tuple[int, int]] = []
    dropped = {pairing.TIES: 0, pairing.MARGIN: 0, pairing.SINGLE: 0}
    dropped[pairing.UNJUDGED] = int(reward.isnan().sum())
    for rows in pairing.groups(batch):
        rows = rows[~reward[rows].isnan()]
        if len(rows) < 2:
            dropped[pairing.SINGLE] += 1
            continue
        earned = reward[rows]
        gap = float(earned.max() - earned.min())
        if gap == 0:
            dropped[pairing.TIES] += 1
        elif gap <= min_margin:
            dropped[pairing.MARGIN] += 1
        else:
            found.append((int(rows[earned.argmax()]), other(rows, earned)))
    pairs = torch.tensor(found, dtype=torch.int64, device=reward.device).reshape(-1, 2)
    paired = replace(batch, pairs=pairs, coefficient=None, pair_weight=None)
    return pairing.counted(pairing.trimmed(paired), dropped)
