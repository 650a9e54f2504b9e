"""Tiles of logits that a head in training keeps for its backward pass, and where they wait.

The gradient of the weight, ``[V, H]``, has to be in memory by the end of the backward pass, and
nothing is in it until the vocabulary is gone over once more. So it is made in the forward pass, and
tiles wait in it; a block of symbols is written over only when its tiles have been used. As many
symbols find room as there are with ``max(N, H)`` numbers to each, and some tiles more apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.tiles import Block, Side

APART_BYTES = 28 * 2**20
"""For the tiles that find no room in the gradient."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tile:
    """What is kept of some states and symbols.

    Attributes:
        values: ``[n, v]`` logits z, or ``e^(z - top)`` where there is a top.
        top: ``[n, 1]``, or None.
    """

    values: Tensor
    top: Tensor | None


class Kept:
    """The tiles of one forward pass.

    Attributes:
        gradient: ``[V, H]`` in the weight's dtype, in which tiles wait; None where the weight has
            no gradient.

    Args:
        side: States and head.
        trained: Whether the weight needs a gradient.
    """

    def __init__(self, side: Side, *, trained: bool) -> None:
        weight = side.head.weight
        self.gradient: Tensor | None = None
        self.space = torch.empty(0, dtype=side.work, device=weight.device)
        if trained:
            self.gradient = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
            numbers = self.gradient.view(-1)
            ratio = max(1, side.work.itemsize // weight.element_size())
            whole = len(numbers) // ratio * ratio
            self.space = numbers[:whole].view(side.work)
        # The gradients of the blocks before must end where a block's tiles begin.
        width = -(-weight.shape[1] * weight.element_size() // side.work.itemsize)
        self.stride = max(len(side.states), width)
        self.room = APART_BYTES
        self.tiles: dict[tuple[int, int], Tile] = {}

    def place(self, rows: slice, block: Block) -> Tensor | None:
        """``[n, v]`` memory in which a tile may stay; None where there is no more."""
        shape = (rows.stop - rows.start, len(block.weight))
        start = block.first * self.stride + rows.start * shape[1]
        if start + shape[0] * shape[1] <= len(self.space):
            return self.space[start : start + shape[0] * shape[1]].view(shape)
        self.room -= shape[0] * shape[1] * self.space.element_size()
        return self.space.new_empty(shape) if self.room >= 0 else None

    def keep(self, rows: slice, block: Block, tile: Tile) -> None:
        """Remember what was written to a place."""
        self.tiles[block.first, rows.start] = tile

    def pop(self, rows: slice, block: Block) -> Tile | None:
        """What was kept, once; None where nothing was."""
        return self.tiles.pop((block.first, rows.start), None)

    def handed_over(self) -> Tensor | None:
        """The memory of the gradient, once; a further backward pass needs some of its own."""
        found, self.gradient = self.gradient, None
        self.space = self.space.new_empty(0)
        return found
