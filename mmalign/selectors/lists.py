"""Selectors that make several pairs of a group: what a list is to an objective of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import pairing
from mmalign.types import Batch

Compared = Callable[[Tensor], Tensor]
"""Ranks of a group's judged rows, ``[G]``, 0 the best -> ``[G, G]`` bool: better against worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllPairs:
    """Every two rows of a group that earned differently become a pair.

    A pairwise objective does the same where nothing has paired its rows, less the margin.

    Attributes:
        min_margin: Pairs whose rewards lie no further apart than this are dropped (reward units).
    """

    min_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.min_margin < 0:
            raise ValueError(f"min_margin={self.min_margin} must not be negative")

    def __call__(self, batch: Batch) -> Batch:
        """The paired rows, with counters of what was dropped."""
        return pairing.trimmed(pairing.ordered_pairs(batch, min_margin=self.min_margin))


@dataclass(frozen=True, slots=True, kw_only=True)
class BestAgainstRest:
    """The best row of a group against each that earned less; of several best ones, each of them."""

    def __call__(self, batch: Batch) -> Batch:
        """The paired rows, with counters of what was dropped."""
        return _paired(batch, lambda rank: (rank == 0).unsqueeze(1) & (rank > 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjacent:
    """Each row of a group against those of the next lower reward, and no further."""

    def __call__(self, batch: Batch) -> Batch:
        """The paired rows, with counters of what was dropped."""
        return _paired(batch, lambda rank: rank.unsqueeze(1) + 1 == rank)


def _paired(batch: Batch, compared: Compared) -> Batch:
    """Ranks have no gaps: equal rewards share one, and the next lower reward has the next."""
    reward, found = pairing.scalar_reward(batch), []
    dropped = {pairing.TIES: 0, pairing.SINGLE: 0, pairing.UNJUDGED: int(reward.isnan().sum())}
    for rows in pairing.groups(batch):
        rows = rows[~reward[rows].isnan()]
        if len(rows) < 2:
            dropped[pairing.SINGLE] += 1
            continue
        _, rank = torch.unique(-reward[rows], return_inverse=True)
        dropped[pairing.TIES] += int(bool((rank == 0).all()))
        better, worse = compared(rank).nonzero().unbind(1)
        found.append(torch.stack([rows[better], rows[worse]], 1))
    empty = torch.zeros(0, 2, dtype=torch.int64, device=reward.device)
    paired = replace(batch, pairs=torch.cat([empty, *found]), coefficient=None, pair_weight=None)
    return pairing.counted(pairing.trimmed(paired), dropped)
