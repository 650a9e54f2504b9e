"""Losses of one step of a pair: each step of the better side is preferred to the other side's."""

from __future__ import annotations

import math

from torch import Tensor, nn


def step_pair(log_ratio_w: Tensor, log_ratio_l: Tensor, *, beta: float, clip: float) -> Tensor:
    """``-log sigmoid(beta log q_w - beta log q_l)``, ``q = clip(exp(l - l_ref), 1 - c, 1 + c)``.

    Args:
        log_ratio_w: Any shape, ``l - l_ref`` of the better side's step, nats.
        log_ratio_l: Same shape, of the worse side's step.
        beta: Per nat of log-ratio.
        clip: c, how far a ratio may leave 1, between 0 and 1; beyond it the side has no gradient.

    Returns:
        Same shape; log 2 where policy and reference agree, and never outside
        ``log(1 + ((1 - c) / (1 + c))^(+-beta))``.

    References:
        D3PO 2311.13231 and SPO 2406.04314, released code.
    """
    low, high = math.log1p(-clip), math.log1p(clip)
    margin = log_ratio_w.clamp(low, high) - log_ratio_l.clamp(low, high)
    return -nn.functional.logsigmoid(beta * margin)
