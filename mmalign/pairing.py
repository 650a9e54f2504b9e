"""Pairs of rows: made from the rewards of a group, checked, and trimmed to what is worth scoring.

Shared by the pairwise objectives and by the selectors. A dropped pair is always counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.types import Batch

TIES = "dropped/ties"
IDENTICAL = "dropped/identical"
UNJUDGED = "dropped/unjudged"
MARGIN = "dropped/margin"
SINGLE = "dropped/single"


def scalar_reward(batch: Batch) -> Tensor:
    """The rewards ``[B]`` of the batch.

    Raises:
        ValueError: There are several rewards a row.
    """
    if batch.reward.dim() != 1:
        raise ValueError(
            f"rewards of shape {tuple(batch.reward.shape)} give no order of a group; combine the "
            "objectives into one number a row first"
        )
    return batch.reward


def groups(batch: Batch) -> list[Tensor]:
    """The row numbers of each group, ``[G]`` int64; rows and groups in ascending order."""
    order = torch.argsort(batch.group, stable=True)
    _, sizes = torch.unique(batch.group, return_counts=True)
    return list(order.split(sizes.tolist()))


def counted(batch: Batch, dropped: Mapping[str, float]) -> Batch:
    """The batch with ``dropped`` added to its counters.

    Zeros are written too: counters are summed over processes, which must all have the same names.
    """
    counters = dict(batch.counters)
    for name, number in dropped.items():
        counters[name] = counters.get(name, 0.0) + float(number)
    return replace(batch, counters=counters)


def ordered_pairs(batch: Batch, *, min_margin: float = 0.0) -> Batch:
    """Every pair of a group in which one row earned more, as ``pairs`` (better, worse).

    An offline preference is a group of two with rewards (1, 0): one pair. Rows that nobody judged
    (NaN) pair with nobody; equal rewards make no pair.
    """
    reward, found = scalar_reward(batch), []
    dropped = {TIES: 0, MARGIN: 0, UNJUDGED: int(reward.isnan().sum())}
    for rows in groups(batch):
        rows = rows[~reward[rows].isnan()]
        first, second = torch.combinations(rows, 2).unbind(1)
        gap = reward[first] - reward[second]
        keep = gap.abs() > min_margin
        dropped[TIES] += int((gap == 0).sum())
        dropped[MARGIN] += int(((gap != 0) & ~keep).sum())
        better = torch.where(gap > 0, first, second)
        found.append(torch.stack([better, first + second - better], dim=1)[keep])
    empty = torch.zeros(0, 2, dtype=torch.int64, device=reward.device)
    pairs = torch.cat([empty, *found])
    return counted(replace(batch, pairs=pairs, coefficient=None, pair_weight=None), dropped)


def without_identical(batch: Batch) -> Batch:
    """The batch without pairs whose two sides are one and the same trajectory of one prompt.

    Such a pair (often the work of truncation) has loss log 2 and no gradient.
    """
    assert batch.pairs is not None
    w, r = batch.pairs.unbind(1)
    trajectory = batch.trajectory
    mask = trajectory.mask
    same = (trajectory.prompt_of[w] == trajectory.prompt_of[r]) & (mask[w] == mask[r]).all(1)
    for value in trajectory.stepwise.values():
        unequal = (value[w] != value[r]).unsqueeze(-1).flatten(2).any(2)
        same &= ~(unequal & mask[w]).any(1)
    return counted(keep_pairs(batch, ~same), {IDENTICAL: int(same.sum())})


def keep_pairs(batch: Batch, kept: Tensor) -> Batch:
    """The batch with the pairs where ``kept`` (``[N]`` bool) holds; its rows stay."""
    assert batch.pairs is not None
    return replace(
        batch,
        pairs=batch.pairs[kept],
        coefficient=None if batch.coefficient is None else batch.coefficient[kept],
        pair_weight=None if batch.pair_weight is None else batch.pair_weight[kept],
    )


def trimmed(batch: Batch) -> Batch:
    """The batch with the rows that are in a pair, so that nothing else is scored.

    A batch must have rows to be scored at all, so one that has lost all its pairs keeps one group.
    """
    assert batch.pairs is not None
    used = torch.unique(batch.pairs)
    if not len(used):
        used = groups(batch)[0]
    return batch if len(used) == len(batch) else batch.rows(used)


def check_pairs(batch: Batch) -> None:
    """Raise ValueError where a pair joins two groups: no piece of the batch would contain it."""
    assert batch.pairs is not None
    crossing = (batch.group[batch.pairs[:, 0]] != batch.group[batch.pairs[:, 1]]).nonzero()
    if len(crossing):
        number = int(crossing[0])
        raise ValueError(
            f"pair {number} (rows {batch.pairs[number].tolist()}) joins rows of two groups; the "
            "sides of a pair must share their group number"
        )
