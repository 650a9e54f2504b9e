"""Elementary functions written so that neither the value nor the gradient overflows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Log-ratios are held within +-20 before they are exponentiated; exp(20) is about 5e8."""
EXPONENT_BOUND = 80.0
"""exp(80), about 6e34, still leaves float32 and bfloat16 room for a factor."""


def log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for ``x <= 0``.

    Args:
        x: Any shape, nats. Values above -1e-6 are read as -1e-6, with zero gradient there.

    Returns:
        Same shape, nats. ``-log 2`` at ``x = -log 2``; about ``-exp(x)`` for very negative ``x``.
    """
    x = x.clamp(max=-1e-6)
    near = x > -math.log(2.0)
    # `where` differentiates both branches, and log1p(-exp(x)) is infinite where exp(x) rounds to 1.
    far = torch.where(near, x.new_tensor(-1.0), x)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(far)))


def masked_sum(x: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Sum of ``x`` over ``dim`` where ``mask`` holds; what is masked may be infinite."""
    return torch.where(mask, x, torch.zeros_like(x)).sum(dim)


def masked_mean(x: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Mean of ``x`` over ``dim`` where ``mask`` holds; 0 where nothing does."""
    return masked_sum(x, mask, dim=dim) / mask.sum(dim).clamp(min=1)


def exp_bounded(log_ratio: Tensor) -> Tensor:
    """``exp`` of a log-ratio held within +-20 nats: 1 where both distributions agree."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
