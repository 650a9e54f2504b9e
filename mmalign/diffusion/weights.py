"""Weights of a bound's draws: how much the error at each level of noise counts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.diffusion.moves import Prediction

TimestepWeight = Literal["constant", "min_snr"]


def min_snr(alpha: Tensor, *, gamma: float, prediction_type: Prediction) -> Tensor:
    """``min(SNR, gamma)`` of the clean latent's error, written for what the network predicts.

    With ``SNR = alpha / (1 - alpha)`` it is ``min(SNR, gamma) / SNR`` for noise,
    ``min(SNR, gamma) / (SNR + 1)`` for v, and ``min(SNR, gamma)`` for the clean latent.

    Args:
        alpha: Any shape, the level: the cumulative alpha of a diffusion, in [0, 1].
        gamma: Where the weight stops growing; the published value is 5.
        prediction_type: What the network predicts.

    Returns:
        Same shape, without unit. For noise it is 1 wherever SNR is at most gamma.

    References:
        2303.09556, section 3.4.
    """
    alpha = alpha.float()
    snr = alpha / (1 - alpha)
    if prediction_type == "epsilon":
        # min(SNR, gamma) / SNR, finite where no signal is left.
        return torch.where(snr > gamma, gamma / snr.clamp(min=1e-8), torch.ones_like(snr))
    least = snr.clamp(max=gamma)
    # (SNR + 1) is 1 / (1 - alpha).
    return least * (1 - alpha) if prediction_type == "v_prediction" else least
