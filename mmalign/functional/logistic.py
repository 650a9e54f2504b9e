"""Pairwise losses that are functions of the difference of the two sides' log-ratios.

Every pairwise loss of this package has one signature and one set of arguments:

    s_w, s_l          ``[N]`` log-probs of the chosen and the rejected side, SUMMED over steps, nats
    ref_s_w, ref_s_l  ``[N]`` the same under the reference; None where a loss is reference-free
    n_w, n_l          ``[N]`` numbers of scored steps
    beta              weight of the log-ratio (per nat); larger keeps nearer to the reference

and returns the unreduced loss ``[N]``. Below, ``h = s - ref_s``, ``D = h_w - h_l`` and ``LS`` is
the logarithm of the logistic function. Sums call for a beta near 0.1, means for one near 2 to 10.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from mmalign.functional.stable import EXPONENT_BOUND

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def difference(s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor) -> Tensor:
    """``D = (s_w - ref_s_w) - (s_l - ref_s_l)``, nats; 0 at the reference."""
    return (s_w - ref_s_w) - (s_l - ref_s_l)


def require_smoothing(value: float, name: str) -> None:
    """Raise ValueError unless ``0 <= value <= 0.5``."""
    if not 0 <= value <= 0.5:
        raise ValueError(
            f"label_smoothing={value} does not suit {name}: it is the share of labels taken to be "
            "wrong, between 0 and 0.5"
        )


def dpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Direct preference optimisation: ``-LS(beta D)``, sums.

    Also Diffusion-DPO (2311.12908, equation 14) where ``s`` is minus one half of the mean squared
    error: beta is then the paper's, 2000 to 5000.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2305.18290, equation 7.
    """
    return -logsigmoid(beta * difference(s_w, s_l, ref_s_w, ref_s_l))


def cdpo_smoothing(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, label_smoothing: float = 0.1,
) -> Tensor:  # fmt: skip
    """Conservative DPO: ``-(1 - e) LS(beta D) - e LS(-beta D)``, sums.

    The gradient vanishes at ``D = log((1 - e) / e) / beta`` and pulls the margin back beyond it.
    DPO is ``e = 0``.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2305.18290 (the authors' note on noisy labels); ``e`` is the probability of a wrong label.
    """
    require_smoothing(label_smoothing, "cdpo_smoothing")
    z = beta * difference(s_w, s_l, ref_s_w, ref_s_l)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def rdpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, label_smoothing: float = 0.1,
) -> Tensor:  # fmt: skip
    """Provably robust DPO: ``[-(1 - e) LS(beta D) + e LS(-beta D)] / (1 - 2 e)``, sums.

    Averaged over labels flipped with probability ``e`` it equals DPO on clean labels. It is
    unbounded below as D grows, so the training loss is no criterion for stopping.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2403.00409.
    """
    require_smoothing(label_smoothing, "rdpo")
    if label_smoothing == 0.5:
        raise ValueError("rdpo divides by 1 - 2 label_smoothing; labels half wrong say nothing")
    z = beta * difference(s_w, s_l, ref_s_w, ref_s_l)
    clean = -(1 - label_smoothing) * logsigmoid(z) + label_smoothing * logsigmoid(-z)
    return clean / (1 - 2 * label_smoothing)


def ln_dpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Length-normalised DPO: ``-LS(beta (h_w / n_w - h_l / n_l))``, MEANS over steps.

    With equal lengths L it is DPO at ``beta / L``; the published beta is 5.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2411.15124.
    """
    a_w = (s_w - ref_s_w) / n_w.clamp(min=1)
    a_l = (s_l - ref_s_l) / n_l.clamp(min=1)
    return -logsigmoid(beta * (a_w - a_l))


def hinge(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Hinge loss on the margin: ``max(0, 1 - beta D)``, sums.

    Returns:
        ``[N]``; 1 where policy and reference agree, 0 from a margin of ``1 / beta`` nats on.

    References:
        2305.10425 (SLiC-HF), 2309.06657 (RSO).
    """
    return relu(1 - beta * difference(s_w, s_l, ref_s_w, ref_s_l))


def exo_pair(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, label_smoothing: float = 1e-3,
) -> Tensor:  # fmt: skip
    """Reverse KL to the smoothed label: ``q log(q/(1 - e)) + (1 - q) log((1 - q)/e)``, sums.

    Here ``q`` is the logistic function of ``beta D``.

    Returns:
        ``[N]``; 0 at ``q = 1 - e``.

    References:
        2402.00856.
    """
    require_smoothing(label_smoothing, "exo_pair")
    if label_smoothing == 0:
        raise ValueError("exo_pair takes the logarithm of label_smoothing; 1e-3 is usual")
    z = beta * difference(s_w, s_l, ref_s_w, ref_s_l)
    q = z.sigmoid()
    right = q * (logsigmoid(z) - math.log1p(-label_smoothing))
    return right + (1 - q) * (logsigmoid(-z) - math.log(label_smoothing))


def discopop(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, tau: float = 0.05,
) -> Tensor:  # fmt: skip
    """Log-ratio modulated loss: ``-LS(z)(1 - m) + exp(-z) m`` with ``m = sigmoid(z / tau)``, sums.

    Here ``z = beta D``. The loss is not convex in the margin: its slope in ``z`` where policy and
    reference agree is ``(1 - log 2) / (4 tau) - 3/4``, so below a ``tau`` of 0.102 the margin is
    pushed down there (at ``beta = tau = 0.05`` from -2.37 to 1.44 nats).

    Returns:
        ``[N]``; (log 2 + 1) / 2 where policy and reference agree.

    References:
        2406.08414.
    """
    z = beta * difference(s_w, s_l, ref_s_w, ref_s_l)
    share = (z / tau).sigmoid()
    # Where z is very negative the share is 0 and the exponential must not be infinite.
    return -logsigmoid(z) * (1 - share) + torch.exp(-z.clamp(min=-EXPONENT_BOUND)) * share


def f_dpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, divergence: Divergence = "reverse_kl", alpha: float = 0.5,
) -> Tensor:  # fmt: skip
    """DPO held to the reference by another divergence: ``-LS(beta (g(h_w) - g(h_l)))``, sums.

    ``g(h)`` is ``h`` (reverse KL, which is DPO), ``-exp(-h)`` (forward KL), ``LS(h)`` (JS), or
    ``exp((alpha - 1) h) / (alpha - 1)`` (alpha; the limit at alpha = 1 is DPO).

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2309.16240.
    """
    g_w = _link(s_w - ref_s_w, divergence, alpha)
    g_l = _link(s_l - ref_s_l, divergence, alpha)
    return -logsigmoid(beta * (g_w - g_l))


def _link(h: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 1.0):
        return h
    if divergence == "js":
        return logsigmoid(h)
    power = alpha - 1 if divergence == "alpha" else -1.0
    # expm1 differs from exp by a constant, which the difference of two sides cancels, and keeps
    # its digits as alpha approaches 1.
    return torch.expm1((power * h).clamp(max=EXPONENT_BOUND)) / power


def label_posterior(gap: Tensor, *, reliability: float | Tensor) -> Tensor:
    """Probability that a pair is labelled rightly: ``sigmoid(gap + logit(reliability))``.

    Args:
        gap: ``[N]`` by how much a loss of pairs prefers the label as it is, ``loss(l over w) -
            loss(w over l)``: ``beta D`` for DPO.
        reliability: Share of right labels of the annotator, a number or ``[N]``, in (0, 1].

    Returns:
        ``[N]`` without gradient; the reliability itself where the gap is 0.
    """
    eta = torch.as_tensor(reliability, dtype=gap.dtype, device=gap.device)
    return torch.sigmoid(gap + torch.logit(eta)).detach()


def label_em(gap: Tensor, *, reliability: float | Tensor) -> Tensor:
    """A step of expectation-maximisation over label correctness, on top of any loss of pairs.

    ``-[w log p + (1 - w) log(1 - p)]`` where ``p = sigmoid(gap)`` is the probability that the loss
    gives the label as it is, by ``p ~ exp(-loss)``, and ``w`` is `label_posterior`, held fixed. The
    caller moves the reliability towards the mean posterior of the annotator's pairs.

    Args:
        gap: See `label_posterior`.
        reliability: See `label_posterior`.

    Returns:
        ``[N]``; log 2 where the gap is 0, ``-log p`` at a reliability of 1.

    References:
        2509.24159.
    """
    w = label_posterior(gap, reliability=reliability)
    return -(w * logsigmoid(gap) + (1 - w) * logsigmoid(-gap))


def latent_em(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, reliability: float | Tensor = 0.9,
) -> Tensor:  # fmt: skip
    """`label_em` of DPO, whose gap is ``beta D``; DPO itself is a reliability of 1.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2509.24159.
    """
    return label_em(beta * difference(s_w, s_l, ref_s_w, ref_s_l), reliability=reliability)
