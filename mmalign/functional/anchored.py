"""Losses of a single output against an anchor, and margins taken step by step."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def anchor(log_ratio: Tensor, *, beta: float, shift: Tensor | float = 0.0) -> Tensor:
    """Keeps a reward above a bound: ``-LS(beta h - shift)`` of a log-ratio ``h``.

    Args:
        log_ratio: ``h = log p - log p_ref``, nats, any shape: summed over steps, or of single ones.
        beta: Per nat.
        shift: The bound, units of reward.

    Returns:
        Same shape; log 2 where policy and reference agree and the shift is 0.

    References:
        mDPO, 2406.11839 (the anchored term); OPA-DPO, 2501.09695.
    """
    return -logsigmoid(beta * log_ratio - shift)


def stepwise_margin(log_ratio: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    """``-LS(beta (w_c h_c - w_r h_r))`` position by position, the two sides aligned by index.

    This is no likelihood of a pair: the steps at one index of two outputs have nothing in common
    but the index. It is what the code released with OPA-DPO computes.

    Args:
        log_ratio: ``[N, 2, T]`` nats of the (chosen, rejected) sides, 0 where masked.
        weight: ``[N, 2, T]``.
        beta: Per nat.

    Returns:
        ``[N, T]``; log 2 where policy and reference agree, and where both sides are padding.
    """
    chosen, rejected = torch.unbind(weight * log_ratio, dim=1)
    return -logsigmoid(beta * (chosen - rejected))
