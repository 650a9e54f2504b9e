"""Does the policy find the chosen output likelier, and could training have made it so?

Everything is about likelihoods, not about the implicit rewards ``beta h`` that a run logs: a policy
can have raised every margin and still rank every pair the wrong way round.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

UNANIMOUS = 0.999
"""The share of people who prefer the chosen output, where all who were asked did."""
BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
"""The betas for which 2405.19534 reports the idealised accuracy."""


def ranked_right(
    s_w: Tensor, s_l: Tensor, n_w: Tensor, n_l: Tensor, *, normalised: bool = False
) -> Tensor:
    """Whether the chosen output is at least as likely as the rejected one.

    Args:
        s_w: ``[N]`` log-probs of the chosen outputs, summed over steps, nats.
        s_l: See ``s_w``, of the rejected ones.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        normalised: Compare means over steps instead of sums.

    Returns:
        ``[N]`` bool; True where both are equal (not the strict accuracy of implicit rewards, which
        is 0 where policy and reference agree).

    References:
        2405.19534.
    """
    if normalised:
        s_w, s_l = s_w / n_w.clamp(min=1), s_l / n_l.clamp(min=1)
    return s_w >= s_l


def idealised_score(
    ref_s_w: Tensor, ref_s_l: Tensor, *, beta: float, agreement: float | Tensor = UNANIMOUS
) -> Tensor:
    """The log-ratio of the two sides under the policy that minimises the RLHF objective exactly.

    ``log(ref(w) / ref(l)) + logit(agreement) / beta``: the reference tilted by a Bradley-Terry
    reward that gives rise to the agreement. Positive means that this policy ranks the pair right.

    Args:
        ref_s_w: ``[N]`` log-probs under the reference, summed, nats.
        ref_s_l: See ``ref_s_w``.
        beta: Of the objective.
        agreement: Share of people who prefer the chosen output, a number or ``[N]``, in (0, 1).

    Returns:
        ``[N]`` nats; the reference's own log-ratio where people are of two minds (one half).

    Raises:
        ValueError: An agreement is not between 0 and 1, or beta is not positive.

    References:
        2405.19534.
    """
    share = torch.as_tensor(agreement, dtype=ref_s_w.dtype, device=ref_s_w.device)
    if not bool(((share > 0) & (share < 1)).all()):
        raise ValueError(
            f"agreement must lie between 0 and 1, both excluded; unanimous is {UNANIMOUS}"
        )
    if beta <= 0:
        raise ValueError(f"beta={beta} must be more than 0")
    return ref_s_w - ref_s_l + torch.logit(share) / beta


def difficulty(ref_s_w: Tensor, ref_s_l: Tensor) -> Tensor:
    """By how much the reference prefers the rejected side: ``log(ref(l) / ref(w))``, nats.

    A pair is ranked right once its log-ratio difference ``D`` reaches this number.

    Returns:
        ``[N]`` nats; 0 where both are equally likely, negative where the reference is right.
    """
    return ref_s_l - ref_s_w


def right_below(hardness: Tensor, *, beta: float) -> Tensor:
    """The DPO loss at and below which a pair is ranked right: ``-log sigmoid(beta difficulty)``.

    Args:
        hardness: ``[N]`` nats, of `difficulty`.
        beta: Of the loss.

    Returns:
        ``[N]``; log 2 where the reference is indifferent, near 0 for a pair it gets very wrong.

    References:
        2405.19534.
    """
    return -logsigmoid(beta * hardness)


def quantiles(values: Tensor, *, at: tuple[float, ...] = (0.1, 0.5, 0.9)) -> dict[float, float]:
    """Quantiles of ``values`` ``[N]``, linearly interpolated; nan of nothing."""
    if not len(values):
        return dict.fromkeys(at, math.nan)
    points = torch.tensor(at, dtype=torch.float64)
    return dict(zip(at, values.double().cpu().quantile(points).tolist(), strict=True))
