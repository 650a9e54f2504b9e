"""Pairwise losses that read no reference, or that add a likelihood term on the chosen side.

See `logistic` for the common arguments; the reference may be None wherever its type says so.
``a = s / n`` is the mean log-prob of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional.logistic import dpo, require_smoothing
from mmalign.functional.squared import Reduction
from mmalign.functional.stable import EXPONENT_BOUND, log1mexp


def simpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor | None, ref_s_l: Tensor | None,
    n_w: Tensor, n_l: Tensor, *, beta: float, gamma: float = 1.375, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Simple preference optimisation: ``-LS(beta (a_w - a_l) - gamma)``, MEANS.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: Not read.
        ref_s_l: Not read.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        beta: Per nat a step; published 2 to 2.5.
        gamma: Target margin, subtracted AFTER the multiplication by beta (not the ratio
            ``gamma / beta`` some code bases ask for).
        label_smoothing: As in `cdpo_smoothing`.

    Returns:
        ``[N]``; ``log(1 + exp(gamma))`` where both sides are equally likely a step.

    References:
        2405.14734, equation 6.
    """
    require_smoothing(label_smoothing, "simpo")
    z = beta * (_mean(s_w, n_w) - _mean(s_l, n_l)) - gamma
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def alphapo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor | None, ref_s_l: Tensor | None,
    n_w: Tensor, n_l: Tensor, *, beta: float, gamma: float = 0.1, alpha: float = 0.25,
) -> Tensor:  # fmt: skip
    """SimPO with a bent reward: ``a`` becomes ``(1 - exp(-alpha a)) / alpha``; MEANS.

    SimPO is the limit ``alpha = 0``, which is allowed.

    Returns:
        ``[N]``; ``log(1 + exp(gamma))`` where both sides are equally likely a step.

    References:
        2501.03884.
    """
    a_w, a_l = _mean(s_w, n_w), _mean(s_l, n_l)
    if alpha != 0:
        a_w, a_l = _bent(a_w, alpha), _bent(a_l, alpha)
    return -logsigmoid(beta * (a_w - a_l) - gamma)


def cpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor | None, ref_s_l: Tensor | None,
    n_w: Tensor, n_l: Tensor, *, beta: float, nll_coefficient: float = 1.0,
) -> Tensor:  # fmt: skip
    """Contrastive preference optimisation: ``-LS(beta (s_w - s_l)) - nll_coefficient a_w``.

    The preference term is over SUMS, the likelihood term is the MEAN over the chosen steps.

    Returns:
        ``[N]``; log 2 plus the likelihood term where both sides are equally likely.

    References:
        2401.08417.
    """
    return -logsigmoid(beta * (s_w - s_l)) - nll_coefficient * _mean(s_w, n_w)


def orpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor | None, ref_s_l: Tensor | None,
    n_w: Tensor, n_l: Tensor, *, beta: float,
) -> Tensor:  # fmt: skip
    """Odds-ratio preference optimisation: ``-a_w - beta LS(log odds_w - log odds_l)``, MEANS.

    ``log odds = a - log(1 - exp(a))``. Beta is the paper's lambda. The likelihood term is over the
    chosen steps only.

    Returns:
        ``[N]``; ``-a_w + beta log 2`` where both sides are equally likely a step.

    References:
        2403.07691, equation 6.
    """
    a_w, a_l = _mean(s_w, n_w), _mean(s_l, n_l)
    log_odds = (a_w - a_l) - (log1mexp(a_w) - log1mexp(a_l))
    return -a_w - beta * logsigmoid(log_odds)


def dpo_sft(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, nll_coefficient: float = 0.005, reduction: Reduction = "sum",
) -> Tensor:  # fmt: skip
    """DPO plus the likelihood of the chosen side: ``-LS(beta D) - nll_coefficient s_w``.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: Not read.
        beta: See the module `logistic`.
        nll_coefficient: Weight of the likelihood term.
        reduction: "sum" is the formula, "mean" divides the likelihood by ``n_w`` (IRPO).

    Returns:
        ``[N]``; log 2 plus the likelihood term where policy and reference agree.

    References:
        2405.16436; IRPO 2404.19733 with a mean and weight 1.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} is unknown to dpo_sft; use 'mean' or 'sum'")
    likelihood = _mean(s_w, n_w) if reduction == "mean" else s_w
    return dpo(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, beta=beta) - nll_coefficient * likelihood


def mapo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor | None, ref_s_l: Tensor | None,
    n_w: Tensor, n_l: Tensor, *, beta: float, snr: float = 0.5, scale: float = 1000.0,
) -> Tensor:  # fmt: skip
    """Margin-aware preference optimisation of a denoiser: ``e_w - beta LS(scale (O_w - O_l))``.

    ``e = -2 s / n`` is the mean squared error, over draws too (a draw's log-prob is minus one half
    of it), and ``O = snr e / (exp(snr e) - 1)``, which is 1 at ``e = 0``.

    Returns:
        ``[N]``; ``e_w + beta log 2`` where both sides have one error.

    References:
        2406.06424; ``scale`` is its number of training timesteps.
    """
    error_w, error_l = -2 * _mean(s_w, n_w), -2 * _mean(s_l, n_l)
    gap = _odds_of_error(snr * error_w) - _odds_of_error(snr * error_l)
    return error_w - beta * logsigmoid(scale * gap)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)


def _bent(a: Tensor, alpha: float) -> Tensor:
    # A step of 320 nats at the published alpha; beyond it the exponential leaves float32.
    return -torch.expm1((-alpha * a).clamp(max=EXPONENT_BOUND)) / alpha


def _odds_of_error(x: Tensor) -> Tensor:
    small = x.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 1 - x / 2 + x.square() / 12, safe / torch.expm1(safe))
