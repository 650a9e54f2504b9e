"""Log-probs and the forward KL of a reference to a policy, from both networks' hidden states.

``sum_v q_v (log q_v - log p_v)`` with q the reference: the mean of the log-ratio over what the
reference would do, which is large where the policy has given up something that the reference does.
Its derivative by a logit is ``p_v - q_v``. As in `mmalign.head`, tiles of both networks' logits are
made and used up, so that no table of states times symbols of either is kept:

* the head is frozen: the means ``E_p w`` and ``E_q w`` of the symbols' rows of the weight, of which
  the derivatives by the states are made, are added up along with the values;
* the head is trained: the backward pass makes the tiles again.

One pass gives all values, so that an objective which reads them pays for either head once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmalign.tiles import Block, Head, Side, Tiling, accumulate, tiling, without

BUFFERS = 4
"""The logits of both networks, and the exponentials of both."""


def forward_kl(
    states: Tensor, tokens: Tensor, head: Head, *, against: tuple[Tensor, Head]
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of the chosen symbols under both, and the KL of the reference to the policy.

    Args:
        states: ``[N, H]``, what the head reads, any float dtype.
        tokens: ``[N]`` int64, what was chosen.
        head: Gradients reach its weight and bias where these require one.
        against: ``[N, H]`` states and the head of the reference; they get no gradient.

    Returns:
        Three ``[N]`` float32 tensors, nats. Two that differentiate once: log-probs, ``-log V``
        where the network knows nothing, and KL, 0 where the two networks agree. And without
        gradient the reference's log-probs.
    """
    job = _Job(head, tokens.unsqueeze(1), Side(against[0].detach(), against[1]))
    trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
    if torch.is_grad_enabled() and trained:
        found = cast(Any, _Recomputing).apply(states, head.weight, head.bias, job)
    elif torch.is_grad_enabled() and states.requires_grad:
        found = cast(Any, _Stashing).apply(states, job)
    else:
        found = _Pass(states, job, derivative=False).outputs()
    return cast(tuple[Tensor, Tensor, Tensor], found)


class _Job(NamedTuple):
    """What is asked: the policy's head, ``[N, 1]`` chosen symbols, and the reference's side."""

    head: Head
    tokens: Tensor
    other: Side


class _Pass:
    """One pass over the tiles of both networks.

    Attributes:
        top: ``[N, 1]`` the largest logit so far: of the policy, and of the reference.
        total: ``[N, 1]`` ``sum e^(z - top)`` of each.
        chosen: ``[N, 1]`` the logit of the chosen symbol of each.
        cross: ``[N, 1]`` ``sum e^(z_q - top_q) (z_q - z_p)``.
        moments: ``[N, H]`` ``sum e^(z - top) z' w`` of each, w being the policy's row of the weight
            and z' the slope of its cap; empty where no derivative is wanted.
    """

    def __init__(self, states: Tensor, job: _Job, *, derivative: bool) -> None:
        def filled(value: float, columns: int = 1) -> Tensor:
            shape = (len(side.states), columns)
            return torch.full(shape, value, dtype=side.work, device=side.states.device)

        side = Side(states, job.head)
        self.side, self.other, self.tokens = side, job.other, job.tokens
        # Not -inf: where the first block is all banned, -inf - -inf would spoil the sums.
        lowest = torch.finfo(side.work).min
        self.top = [filled(lowest), filled(lowest)]
        self.total = [filled(0.0), filled(0.0)]
        # A token outside the vocabulary must not pass for one of probability 0.
        self.chosen, self.cross = [filled(float("nan")) for _ in range(2)], filled(0.0)
        width = side.states.shape[1]
        self.moments = [filled(0.0, width), filled(0.0, width)] if derivative else []
        self._run()

    def _run(self) -> None:
        plan = tiling(self.side, buffers=BUFFERS + (self.side.cap is not None))
        with torch.autocast(self.side.states.device.type, enabled=False):
            for symbols in plan.symbols:
                block, facing = self.side.block(symbols), self.other.block(symbols)
                for rows in plan.rows:
                    self._add(rows, block, facing, plan)

    def _add(self, rows: slice, block: Block, facing: Block, plan: Tiling) -> None:
        z, q = (plan.tile(number, rows, block) for number in (0, 1))
        self.side.logits(rows, block, z)
        self.other.logits(rows, facing, q)
        place, inside = block.places(self.tokens[rows])
        for known, logits in zip(self.chosen, (z, q), strict=True):
            known[rows] = torch.where(inside, logits.gather(1, place), known[rows])
        slope = None
        if self.moments and self.side.cap is not None:
            slope = self.side.slope(z, block, plan.tile(-1, rows, block))
        for number, logits in enumerate((z, q)):
            tile = plan.tile(2 + number, rows, block)
            fade = self._raise_top(number, rows, logits)
            torch.sub(logits, self.top[number][rows], out=tile).exp_()
            self.total[number][rows] = self.total[number][rows] * fade + tile.sum(1, keepdim=True)
            if number == 1:
                gap = without(q.sub_(z), block, 0.0).mul_(tile).sum(1, keepdim=True)
                self.cross[rows] = self.cross[rows] * fade + gap
            if self.moments:
                self.moments[number][rows] *= fade
                weighed = tile if slope is None else tile.mul_(slope)
                accumulate(self.moments[number][rows], weighed, block.weight)

    def _raise_top(self, number: int, rows: slice, logits: Tensor) -> Tensor:
        """``[n, 1]`` what sums so far are multiplied with, as they refer to a new top."""
        before = self.top[number][rows]
        after = torch.maximum(before, logits.amax(1, keepdim=True))
        fade = (before - after).exp()
        self.top[number][rows] = after
        return fade

    @property
    def log_totals(self) -> tuple[Tensor, Tensor]:
        """``[N, 1]`` log of ``sum e^z`` of the policy and of the reference."""
        first, second = (top + total.log() for top, total in zip(self.top, self.total, strict=True))
        return first, second

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """``[N]`` float32 log-probs, KL, and log-probs of the reference."""
        own, theirs = self.log_totals
        divergence = self.cross / self.total[1] - theirs + own
        values = (self.chosen[0] - own, divergence, self.chosen[1] - theirs)
        first, second, third = (value.squeeze(1).float() for value in values)
        return first, second, third

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """``[N, H]`` by the states: gain times ``w'_token - E_p w'`` and ``E_p w' - E_q w'``."""
        side = self.side
        mean, theirs = (m / t for m, t in zip(self.moments, self.total, strict=True))
        # A banned token has probability 0 whatever the states are.
        chosen = self.chosen[0]
        slope = chosen.isfinite().to(side.work)
        if side.cap is not None:
            slope = torch.where(slope > 0, 1 - (chosen / side.cap) ** 2, slope)
        own = side.head.weight.detach()[self.tokens.squeeze(1)].to(side.work)
        return own.mul_(slope).sub_(mean).mul_(side.gain), (mean - theirs).mul_(side.gain)


class _Stashing(torch.autograd.Function):
    """A frozen head: the derivatives by the states are there when the forward pass is done."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, job: _Job) -> tuple[Tensor, Tensor, Tensor]:
        found = _Pass(states, job, derivative=True)
        ctx.save_for_backward(*found.derivatives())
        ctx.dtype = states.dtype
        return _marked(ctx, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        pairs = zip(ctx.saved_tensors, gradients[:2], strict=True)
        return sum(u * g.unsqueeze(1) for u, g in pairs).to(ctx.dtype), None


class _Recomputing(torch.autograd.Function):
    """A head in training: the backward pass goes over the tiles again."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, job: _Job
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = _Pass(states, job, derivative=False)
        ctx.save_for_backward(states, weight, bias)
        ctx.found = found
        return _marked(ctx, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        by_states, by_weight, by_bias = _gradients(ctx.found, gradients[:2], ctx.needs_input_grad)
        return (
            None if by_states is None else by_states.to(states.dtype),
            None if by_weight is None else by_weight.to(weight.dtype),
            None if by_bias is None else by_bias.to(bias.dtype),
            None,
        )


def _marked(ctx: Any, found: _Pass) -> tuple[Tensor, Tensor, Tensor]:
    outputs = found.outputs()
    ctx.mark_non_differentiable(outputs[2])
    return outputs


def _gradients(
    found: _Pass, gradients: tuple[Tensor, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients by states, weight and bias in the dtype of the sums; None where not needed."""
    side = found.side
    shapes = (side.states.shape, side.head.weight.shape, (len(side.head.weight),))
    by = [
        torch.zeros(shape, dtype=side.work, device=side.states.device) if need else None
        for shape, need in zip(shapes, needed, strict=False)
    ]
    of_log_probs, of_kl = (g.to(side.work).mul(side.gain).unsqueeze(1) for g in gradients)
    plan = tiling(side, buffers=BUFFERS + (side.cap is not None))
    with torch.autocast(side.states.device.type, enabled=False):
        for symbols in plan.symbols if plan.rows else ():
            block, facing = side.block(symbols), found.other.block(symbols)
            for rows in plan.rows:
                tile = _by_logits(found, rows, block, facing, plan, (of_log_probs, of_kl))
                if by[0] is not None:
                    accumulate(by[0][rows], tile, block.weight)
                if by[1] is not None:
                    accumulate(by[1][symbols], tile.T, side.states[rows])
                if by[2] is not None:
                    by[2][symbols] += tile.sum(0)
    return by


def _by_logits(
    found: _Pass,
    rows: slice,
    block: Block,
    facing: Block,
    plan: Tiling,
    by: tuple[Tensor, Tensor],
) -> Tensor:
    """``[n, v]`` gradient by the policy's raw logits: ``g_l (1[token] - p) + g_k (p - q)``."""
    side, (of_log_probs, of_kl) = found.side, by
    own, theirs = found.log_totals
    z = side.logits(rows, block, plan.tile(0, rows, block))
    q = found.other.logits(rows, facing, plan.tile(1, rows, block))
    p = torch.sub(z, own[rows], out=plan.tile(2, rows, block)).exp_()
    p.mul_((of_kl - of_log_probs)[rows])
    p.sub_(q.sub_(theirs[rows]).exp_().mul_(of_kl[rows]))
    place, inside = block.places(found.tokens[rows])
    # A banned token has probability 0 whatever the states are.
    counted = inside & found.chosen[0][rows].isfinite()
    p.scatter_add_(1, place, torch.where(counted, of_log_probs[rows], 0.0))
    if side.cap is not None:
        p.mul_(side.slope(z, block, plan.tile(-1, rows, block)))
    return p
