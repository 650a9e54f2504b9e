"""Symbols under the contrast of two networks: what one of them does and the other does not."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.tiles import Head, Side, tiling, without


@torch.no_grad()
def contrast_log_probs(
    states: Tensor, tokens: Tensor, head: Head, *, against: tuple[Tensor, Head], strength: float
) -> Tensor:
    """``log softmax((1 + b) z - b z_other)`` at the chosen symbols, without a table of logits.

    Args:
        states: ``[N, H]``, what the head reads, any float dtype.
        tokens: ``[N]`` int64, what was chosen.
        head: Of the network that is to be followed.
        against: ``[N, H]`` states and the head of the network that is to be avoided.
        strength: The b; 0 leaves the first network's log-probs.

    Returns:
        ``[N]`` float32 nats, at most 0, without gradient; the first network's log-probs where both
        networks agree.

    Raises:
        ValueError: The networks have different vocabularies.
    """
    ours, theirs = len(head.weight), len(against[1].weight)
    if ours != theirs:
        raise ValueError(
            f"a contrast needs one vocabulary: one network has {ours} symbols, the other {theirs}"
        )
    side, other, chosen_of = Side(states, head), Side(*against), tokens.unsqueeze(1)
    shape = (len(states), 1)
    # Not -inf: where the first block is all banned, -inf - -inf would spoil the sums.
    top = torch.full(shape, torch.finfo(side.work).min, dtype=side.work, device=states.device)
    total, chosen = torch.zeros_like(top), torch.full_like(top, float("nan"))
    plan = tiling(side, buffers=2)
    with torch.autocast(side.states.device.type, enabled=False):
        for symbols in plan.symbols:
            block, facing = side.block(symbols), other.block(symbols)
            for rows in plan.rows:
                z = side.logits(rows, block, plan.tile(0, rows, block))
                z_other = other.logits(rows, facing, plan.tile(1, rows, block))
                without(z.mul_(1 + strength).sub_(z_other.mul_(strength)), block, float("-inf"))
                place, inside = block.places(chosen_of[rows])
                chosen[rows] = torch.where(inside, z.gather(1, place), chosen[rows])
                higher = torch.maximum(top[rows], z.amax(1, keepdim=True))
                faded = total[rows] * (top[rows] - higher).exp()
                total[rows] = faded + z.sub_(higher).exp_().sum(1, keepdim=True)
                top[rows] = higher
    return (chosen - top - total.log()).squeeze(1).float()
