"""Log-probs of chosen symbols from hidden states, without a tensor of states times symbols.

A vocabulary of 152,000 makes the logits the largest tensor of a run, and nearly all of it is thrown
away. Here a tile of logits is made, what is needed of it is added up, and the next takes its place
(`mmalign.tiles`). Where a gradient is needed, one of two functions computes it:

* the head is frozen: the derivative of each output by its state, ``[N, H]``, is added up along with
  the output, so that the backward pass is one product by element;
* the head is trained: the backward pass goes over the tiles a second time, most of which were kept
  (`mmalign.kept`), and adds up the gradients of states, weight and bias.

Sums are float32 (float64 where the states are), whatever the dtype of the network. Both functions
differentiate once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmalign.forward_kl import forward_kl
from mmalign.head_sums import Job, Sums
from mmalign.kept import Kept, Tile
from mmalign.protocols import AGAINST, Want
from mmalign.tiles import Block, Head, Side, Tiling, accumulate, without

__all__ = ["Head", "head_scores"]

TOP_K = 10
"""How many of the likeliest symbols `top_k_mass` and `top_k_entropy` are about."""
TOP = ("top_k_mass", "top_k_entropy")
FROM_LOGITS = frozenset({"entropy", "kl", "log_collision", *TOP})
"""What one pass of this module's gives, beside log-probs."""


def head_scores(
    states: Tensor,
    tokens: Tensor,
    head: Head,
    *,
    want: Want = frozenset(),
    against: tuple[Tensor, Head] | None = None,
) -> dict[str, Tensor]:
    """Everything `mmalign.types.Scores` holds that follows from the states at scored positions.

    Args:
        states: ``[N, H]``, what the head reads, any float dtype.
        tokens: ``[N]`` int64, what was chosen.
        head: Gradients reach its weight and bias where these require one.
        want: The further fields of `Scores` to fill; names that need no logits are ignored.
        against: ``[N, H]`` states and the head of the reference, where ``"kl"`` or
            ``"kl_forward"`` is wanted; they get no gradient.

    Returns:
        ``[N]`` float32 tensors under the field names of `Scores`: ``log_probs``, nats, ``-log V``
        where the network knows nothing; ``entropy``, nats, ``log V`` there; ``kl`` (of the policy
        to the reference) and ``kl_forward`` (of the reference to the policy), nats, 0 where the two
        agree; and without gradient ``reference``, the reference's log-probs, beside ``kl_forward``,
        ``top_k_mass``, ``top_k_entropy`` and ``log_collision``, nats,
        ``-log V`` where the network knows nothing.
    """
    if want & AGAINST:
        against = _comparable(head, against)
    if "kl_forward" in want:
        assert against is not None
        own, divergence, theirs = forward_kl(states, tokens, head, against=against)
        found = {"log_probs": own, "kl_forward": divergence, "reference": theirs}
        rest = want - {"kl_forward", "log_probs"}
        if rest & FROM_LOGITS:
            found = head_scores(states, tokens, head, want=rest, against=against) | found
        return found
    names = ["log_probs", *(name for name in ("entropy", "kl") if name in want)]
    job = Job(
        head=head,
        tokens=tokens.unsqueeze(1),
        names=tuple(names),
        against=(against[0].detach(), against[1]) if against and "kl" in want else None,
        best=TOP_K if want.intersection(TOP) else 0,
        collision="log_collision" in want,
    )
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if torch.is_grad_enabled() and trained:
        values = cast(Any, _Recomputing).apply(states, head.weight, head.bias, job)
    elif torch.is_grad_enabled() and states.requires_grad:
        values = cast(Any, _Stashing).apply(states, job)
    else:
        values = _scan(Side(states, head), job).outputs()
    measured = [*(TOP if job.best else ()), *(["log_collision"] if job.collision else [])]
    found = dict(zip([*names, *measured], values, strict=True))
    return {name: value for name, value in found.items() if name in {"log_probs", *want}}


def _comparable(head: Head, against: tuple[Tensor, Head] | None) -> tuple[Tensor, Head]:
    """The reference, which must be there and speak of the same symbols."""
    if against is None:
        raise ValueError("exact `kl` was asked for without a reference module to compare with")
    ours, theirs = len(head.weight), len(against[1].weight)
    if ours != theirs:
        raise ValueError(
            f"exact `kl` needs one vocabulary: the policy has {ours} symbols, the reference "
            f"{theirs}"
        )
    return against


def _scan(side: Side, job: Job, *, derivative: bool = False, kept: Kept | None = None) -> Sums:
    """One pass over all tiles, of which ``kept`` keeps what it has room for."""
    other, tiling = job.other(), job.tiling(side)
    sums = Sums(side, job, derivative=derivative)
    with torch.autocast(side.states.device.type, enabled=False):
        for symbols in tiling.symbols:
            block = side.block(symbols)
            facing = None if other is None else other.block(symbols)
            for rows in tiling.rows:
                place = None if kept is None else kept.place(rows, block)
                z = tiling.tile(0, rows, block) if place is None else place
                side.logits(rows, block, z)
                if other is not None and facing is not None:
                    other.logits(rows, facing, tiling.tile(job.last, rows, block))
                sums.add(rows, block, z, tiling)
                if kept is not None and place is not None:
                    top = sums.top[rows].clone() if sums.in_place else None
                    kept.keep(rows, block, Tile(values=place, top=top))
    return sums


class _Stashing(torch.autograd.Function):
    """Scores of a frozen head: their derivatives are there when the forward pass is done."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, job: Job) -> tuple[Tensor, ...]:
        sums = _scan(Side(states, job.head), job, derivative=True)
        ctx.save_for_backward(*sums.derivatives())
        ctx.dtype = states.dtype
        return _marked(ctx, sums.outputs(), job)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pairs = zip(ctx.saved_tensors, gradients, strict=False)
        return sum(u * g.unsqueeze(1) for u, g in pairs).to(ctx.dtype), None


class _Recomputing(torch.autograd.Function):
    """Scores of a head in training: the backward pass goes over the tiles again."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, job: Job
    ) -> tuple[Tensor, ...]:
        side = Side(states, job.head)
        ctx.kept = Kept(side, trained=ctx.needs_input_grad[1])
        ctx.sums = _scan(side, job, kept=ctx.kept)
        ctx.save_for_backward(states, weight, bias)
        return _marked(ctx, ctx.sums.outputs(), job)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        states, weight, bias = ctx.saved_tensors
        side = Side(states, replace(ctx.sums.job.head, weight=weight, bias=bias))
        found = _Gradients(side, ctx.sums, gradients, kept=ctx.kept, needed=ctx.needs_input_grad)
        found.collect()
        return (
            None if found.states is None else found.states.to(states.dtype),
            found.weight,
            None if found.bias is None else found.bias.to(bias.dtype),
            None,
        )


def _marked(ctx: Any, outputs: tuple[Tensor, ...], job: Job) -> tuple[Tensor, ...]:
    ctx.mark_non_differentiable(*outputs[len(job.names) :])
    return outputs


class _Gradients:
    """Gradients of a loss by states, weight and bias, from those by the outputs.

    Attributes:
        states: ``[N, H]`` in the dtype of the sums, or None where not needed; the others likewise.
        weight: ``[V, H]`` in the weight's dtype.
        bias: ``[V]`` in the dtype of the sums.
    """

    def __init__(
        self,
        side: Side,
        sums: Sums,
        gradients: Sequence[Tensor],
        *,
        kept: Kept,
        needed: Sequence[bool],
    ) -> None:
        job, head, x = sums.job, side.head, side.states
        pairs = zip(job.names, gradients, strict=False)
        by = {name: g.to(side.work).mul(side.gain).unsqueeze(1) for name, g in pairs}
        values = sums.values()
        self.side, self.sums, self.kept = side, sums, kept
        # The derivative by a logit is p times (constant + slope log p + of_other log q), and at the
        # chosen symbol `own` more; a banned token has probability 0 whatever the states are.
        self.own = torch.where(sums.chosen.isfinite(), by["log_probs"], 0.0)
        self.constant, self.slope, self.of_other = -by["log_probs"], None, None
        if "entropy" in by:
            self.slope = -by["entropy"]
            self.constant = self.constant - by["entropy"] * values["entropy"]
        if "kl" in by:
            self.of_other = -by["kl"]
            self.slope = by["kl"] if self.slope is None else self.slope + by["kl"]
            self.constant = self.constant + by["kl"] * (sums.other - values["kl"])
        self.log_total = sums.log_total
        self.states: Tensor | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if needed[0]:
            self.states = torch.zeros(x.shape, dtype=side.work, device=x.device)
        if needed[1]:
            memory = kept.handed_over()
            self.weight = torch.empty_like(head.weight) if memory is None else memory
            if not len(x):
                self.weight.zero_()
        if needed[2]:
            self.bias = torch.zeros(len(head.weight), dtype=side.work, device=x.device)

    def collect(self) -> None:
        """Go over all tiles; those that were kept are not made again."""
        side, job = self.side, self.sums.job
        other, tiling = job.other(), job.tiling(side)
        with torch.autocast(side.states.device.type, enabled=False):
            for symbols in tiling.symbols if tiling.rows else ():
                block = side.block(symbols)
                facing = None if other is None else other.block(symbols)
                by_weight = self._by_weight(symbols, alone=len(tiling.rows) == 1)
                for rows in tiling.rows:
                    tile = self.kept.pop(rows, block)
                    if tile is None:
                        z = side.logits(rows, block, tiling.tile(0, rows, block))
                        tile = Tile(values=z, top=None)
                    if other is not None and facing is not None:
                        other.logits(rows, facing, tiling.tile(job.last, rows, block))
                    found = self._by_logits(rows, block, tile, tiling)
                    if self.states is not None:
                        accumulate(self.states[rows], found, block.weight)
                    if by_weight is not None:
                        first = rows.start == 0
                        accumulate(by_weight, found.T, side.states[rows], first=first)
                    if self.bias is not None:
                        self.bias[symbols] += found.sum(0)
                if self.weight is not None and by_weight is not None:
                    self.weight[symbols] = by_weight

    def _by_weight(self, symbols: slice, *, alone: bool) -> Tensor | None:
        """Where the gradient of a block adds up.

        In its place in the whole, if that is exact and one product: tiles of further rows of the
        block may wait there until they are used.
        """
        if self.weight is None:
            return None
        place, work = self.weight[symbols], self.side.work
        return place if alone and place.dtype == work else torch.empty_like(place, dtype=work)

    def _by_logits(self, rows: slice, block: Block, tile: Tile, tiling: Tiling) -> Tensor:
        """``[n, v]`` gradient by the network's raw logits."""
        z, p, constant = tile.values, tiling.tile(1, rows, block), self.constant[rows]
        if tile.top is not None:
            torch.mul(z, (tile.top - self.log_total[rows]).exp_().mul_(constant), out=p)
        elif self.slope is None:
            torch.sub(z, self.log_total[rows], out=p).exp_().mul_(constant)
        else:
            torch.sub(z, self.log_total[rows], out=p)
            if self.of_other is None:
                factor = torch.mul(p, self.slope[rows], out=tiling.tile(2, rows, block))
            else:
                factor = tiling.tile(self.sums.job.last, rows, block).mul_(self.of_other[rows])
                factor.addcmul_(p, self.slope[rows])
            p.exp_().mul_(without(factor.add_(constant), block, 0.0))
        place, inside = block.places(self.sums.job.tokens[rows])
        p.scatter_add_(1, place, torch.where(inside, self.own[rows], 0.0))
        if self.side.cap is not None:
            p.mul_(self.side.slope(z, block, tiling.tile(-1, rows, block)))
        return p
