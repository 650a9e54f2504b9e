"""What the objectives of ranked lists share: which rows make a list, padding, and the denominator.

A list is a group: recorded (source `ranked`), or the samples of a prompt with their rewards. Its
rows stay together in every piece of a batch, so a loss of lists is a sum over pieces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import pairing
from mmalign.functional import masked_sum
from mmalign.objectives import policy_gradient
from mmalign.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The lists of a piece, padded.

    Attributes:
        rows: ``[P, K]`` int64 row numbers; 0 where a list is shorter.
        valid: ``[P, K]`` bool.
        score: ``[P, K]`` rewards; 0 where a list is shorter.
    """

    rows: Tensor
    valid: Tensor
    score: Tensor


@torch.no_grad()
def credit(batch: Batch) -> Batch:
    """The rows that are in a list with an order, and the number of lists as denominator.

    Rows that nobody judged are left out; then lists of fewer than two rows, and lists whose rewards
    are all equal. All are counted.
    """
    reward = pairing.scalar_reward(batch)
    usable = ~reward.isnan() & policy_gradient.scored(batch).any(1)
    dropped = {pairing.TIES: 0, pairing.SINGLE: 0, pairing.UNJUDGED: int(reward.isnan().sum())}
    kept, count = torch.zeros_like(usable), 0
    for group in pairing.groups(batch):
        rows = group[usable[group]]
        if len(rows) < 2:
            dropped[pairing.SINGLE] += len(rows)
        elif bool((reward[rows] == reward[rows[0]]).all()):
            dropped[pairing.TIES] += 1
        else:
            kept[rows], count = True, count + 1
    batch = replace(batch, pairs=None, coefficient=None, pair_weight=None, pair_anchor=None)
    batch = pairing.counted(policy_gradient.keep_rows(batch, kept), dropped)
    return replace(batch, denominator=float(count))


def of(batch: Batch) -> Lists:
    """The lists of a credited piece; one without any has P = 0."""
    usable = policy_gradient.scored(batch).any(1)
    groups = [group[usable[group]] for group in pairing.groups(batch)]
    groups = [rows for rows in groups if len(rows)]
    longest = max(map(len, groups), default=1)
    index = torch.zeros(len(groups), longest, dtype=torch.int64, device=batch.group.device)
    valid = torch.zeros_like(index, dtype=torch.bool)
    for number, rows in enumerate(groups):
        index[number, : len(rows)] = rows
        valid[number, : len(rows)] = True
    score = torch.where(valid, batch.reward[index], 0.0)
    return Lists(rows=index, valid=valid, score=score)


def mean_log_probs(log_probs: Tensor, batch: Batch) -> Tensor:
    """``[B]`` mean log-probs over the scored steps, each times its weight: nats a step."""
    scored = policy_gradient.scored(batch)
    return masked_sum(log_probs * batch.weight, scored) / scored.sum(1).clamp(min=1)


def ordered_rightly(value: Tensor, lists: Lists) -> tuple[Tensor, Tensor]:
    """A metric: the share of comparisons that ``value`` (``[P, K]``) decides as the scores do."""
    better = lists.score.unsqueeze(2) > lists.score.unsqueeze(1)
    compared = better & lists.valid.unsqueeze(2) & lists.valid.unsqueeze(1)
    right = value.unsqueeze(2) > value.unsqueeze(1)
    return (right & compared).sum().to(value), compared.sum().to(value)


def best(lists: Lists) -> Tensor:
    """``[P, K]`` the share of each row in its list's best: 1 for one, 1 / m for each of m ties."""
    score = torch.where(lists.valid, lists.score, float("-inf"))
    top = (score == score.amax(1, keepdim=True)) & lists.valid
    return top / top.sum(1, keepdim=True)
