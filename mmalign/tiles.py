"""Logits in tiles: a few states times a few symbols, made in a buffer that is used again.

The vocabulary is the outer loop, so that a block of the weight is read (and brought to float32
where it is not) once, however many states there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""What the buffers of a tile take together; on a GPU starting a kernel costs more than memory."""
TILE_ROWS = {"cpu": 512, "cuda": 4096}
"""States in a tile where memory allows: the gradient of the weight is summed up once a tile."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """The last linear layer, and all that happens between it and the step distribution.

    ``z = cap(scale * (x W^T + b)) / temperature``, where ``cap(a) = c tanh(a / c)``, and ``-inf``
    at banned symbols: what `mmalign.tokens.step_logits` makes of the network's logits.

    Attributes:
        weight: ``[V, H]``, any float dtype.
        bias: ``[V]``, or None.
        temperature: Divides the logits; greater than 0.
        banned: Symbols that have probability 0.
        scale: Multiplies the raw logits.
        softcap: The bound c of the logits' size, greater than 0; None for no bound.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    banned: tuple[int, ...] = ()
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("softcap", self.softcap)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        wrong = [i for i in self.banned if not 0 <= i < len(self.weight)]
        if wrong:
            raise ValueError(f"banned symbols {wrong} are not in 0 .. {len(self.weight) - 1}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Some symbols of a head.

    Attributes:
        first: Number of the first symbol.
        weight: ``[v, H]`` in the dtype of the products.
        bias: ``[v]`` in the dtype of the sums, or None.
        banned: ``[...]`` int64, places in the block that have probability 0.
    """

    first: int
    weight: Tensor
    bias: Tensor | None
    banned: Tensor

    def places(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``[n, 1]`` symbols stand in the block, and whether they do; 0 for the others."""
        place = symbols - self.first
        inside = (place >= 0) & (place < len(self.weight))
        return place.masked_fill(~inside, 0), inside


class Side:
    """The states of one network, and its head.

    Attributes:
        head: The head.
        states: ``[N, H]`` in the dtype of the products: that of the sums, except on a GPU, whose
            products of 16-bit numbers come out in float32.
        work: Dtype of the sums: float32, or float64 where the states are.
        gain: Derivative of a step logit by the network's raw logit, apart from the cap.
    """

    def __init__(self, states: Tensor, head: Head) -> None:
        double = torch.float64 in (states.dtype, head.weight.dtype)
        self.work = torch.float64 if double else torch.float32
        wide = states.is_cuda and states.dtype in HALF
        self.head = head
        self.states = states.detach().to(states.dtype if wide else self.work)
        self.gain = head.scale / head.temperature
        self.cap = None if head.softcap is None else head.softcap / head.temperature
        self.banned = sorted(head.banned)

    def block(self, symbols: slice) -> Block:
        """The symbols of the slice."""
        head = self.head
        low, high = (bisect_left(self.banned, at) for at in (symbols.start, symbols.stop))
        banned = [i - symbols.start for i in self.banned[low:high]]
        bias = None if head.bias is None else head.bias.detach()[symbols].to(self.work)
        return Block(
            first=symbols.start,
            weight=head.weight.detach()[symbols].to(self.states.dtype),
            bias=bias,
            banned=torch.tensor(banned, dtype=torch.int64, device=self.states.device),
        )

    def logits(self, rows: slice, block: Block, out: Tensor) -> Tensor:
        """The step logits ``[n, v]`` of some rows, written into ``out``."""
        factor = self.gain if self.cap is None else self.gain / self.cap
        x, columns = self.states[rows], block.weight.T
        if x.dtype != out.dtype:
            out.copy_(torch.mm(x, columns, out_dtype=out.dtype))
            if block.bias is not None:
                out.add_(block.bias)
            out.mul_(factor)
        elif block.bias is None:
            out.addmm_(x, columns, beta=0, alpha=factor)
        else:
            torch.addmm(block.bias, x, columns, beta=factor, alpha=factor, out=out)
        if self.cap is not None:
            out.tanh_().mul_(self.cap)
        return without(out, block, float("-inf"))

    def slope(self, logits: Tensor, block: Block, out: Tensor) -> Tensor:
        """Derivative ``1 - tanh^2`` of the cap, from what `logits` gave; 0 at banned symbols."""
        assert self.cap is not None
        torch.div(logits, self.cap, out=out).square_().neg_().add_(1)
        return without(out, block, 0.0)


def without(tile: Tensor, block: Block, value: float) -> Tensor:
    """``value`` written over the tile's banned symbols."""
    return tile.index_fill_(1, block.banned, value) if len(block.banned) else tile


def accumulate(total: Tensor, left: Tensor, right: Tensor, *, first: bool = False) -> None:
    """``total += left @ right``; the sum keeps its dtype, the products have that of ``right``.

    The first product takes the place of whatever is in ``total``, so that no zeros need be written.
    """
    if right.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    else:
        product = torch.mm(left.to(right.dtype), right, out_dtype=total.dtype)
        total.copy_(product) if first else total.add_(product)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a table of ``rows`` states by ``symbols`` is cut, and buffers for one tile."""

    rows: list[slice]
    symbols: list[slice]
    buffers: Tensor

    def tile(self, number: int, rows: slice, block: Block) -> Tensor:
        """Buffer ``number`` in the shape of a tile; what was in it is lost."""
        shape = (rows.stop - rows.start, len(block.weight))
        return self.buffers[number][: shape[0] * shape[1]].view(shape)


def tiling(side: Side, *, buffers: int) -> Tiling:
    """Tiles such that ``buffers`` of them, and as much again for the weight, fit `TILE_BYTES`."""
    (count, width), symbols = side.states.shape, len(side.head.weight)
    device = side.states.device
    kind = device.type if device.type in TILE_BYTES else "cpu"
    half = TILE_BYTES[kind] // side.work.itemsize // 2
    tall = max(1, min(count, TILE_ROWS[kind], half // buffers))
    wide = max(1, min(symbols, half // width, half // buffers // tall))
    return Tiling(
        rows=list(_cut(count, tall)),
        symbols=list(_cut(symbols, wide)),
        buffers=torch.empty(buffers, tall * wide, dtype=side.work, device=device),
    )


def _cut(total: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step``, as even as they come."""
    pieces = -(-total // step)
    edges = [total * i // max(1, pieces) for i in range(pieces + 1)]
    return (slice(a, b) for a, b in pairwise(edges))
