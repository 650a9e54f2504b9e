"""Losses of outputs that are labelled one by one, desirable or not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def kto(log_ratio: Tensor, label: Tensor, *, beta: float, kl_point: Tensor | float = 0.0) -> Tensor:
    """Kahneman-Tversky optimisation: ``1 - sigmoid(s beta (h - z0))``.

    ``s`` is 1 where the output is desirable and -1 where it is not. With ``z0 = 0`` it is the
    unpaired anchored loss (APO-zero).

    Args:
        log_ratio: ``[B]`` h, the log-probs minus those of the reference, summed over steps, nats.
        label: ``[B]`` bool, True where desirable.
        beta: Per nat of log-ratio.
        kl_point: z0, nats, a number or ``[B]``; held fixed.

    Returns:
        ``[B]`` in (0, 1); 0.5 where policy and reference agree and z0 is 0.

    References:
        2402.01306; 2408.06266 for ``z0 = 0``.
    """
    fixed = kl_point.detach() if isinstance(kl_point, Tensor) else kl_point
    sign = torch.where(label, 1.0, -1.0).to(log_ratio)
    # 1 - sigmoid(z) is sigmoid(-z), which keeps its digits where z is large.
    return (-sign * beta * (log_ratio - fixed)).sigmoid()


def bco_unpaired(
    log_ratio: Tensor, label: Tensor, *, beta: float, shift: Tensor | float = 0.0
) -> Tensor:
    """Binary classifier optimisation: ``-log sigmoid(s (beta h - shift))``.

    ``s`` is 1 where the output is desirable and -1 where it is not. The sum over a desirable and an
    undesirable row is `bco` of them as a pair.

    Args:
        log_ratio: ``[B]`` h, the log-probs minus those of the reference, summed over steps, nats.
        label: ``[B]`` bool, True where desirable.
        beta: Per nat of log-ratio.
        shift: The reward that is told from; a number or ``[B]``; held fixed.

    Returns:
        ``[B]``; log 2 where the reward is the shift.

    References:
        2404.04656.
    """
    fixed = shift.detach() if isinstance(shift, Tensor) else shift
    sign = torch.where(label, 1.0, -1.0).to(log_ratio)
    return -logsigmoid(sign * (beta * log_ratio - fixed))
