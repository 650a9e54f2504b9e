"""Pairwise losses of sampled pairs with a third term: exploration, and the iterate before.

The common arguments are described in `mmalign.functional.logistic`; further tensors are per pair.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional.logistic import difference

XPOForm = Literal["sigmoid", "ipo"]


def xpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, alpha: float, chosen_is_reference: Tensor, form: XPOForm = "sigmoid",
) -> Tensor:  # fmt: skip
    """Exploratory preference optimisation: ``-LS(beta D) + alpha s(y~)``, sums.

    ``y~`` is whichever side was sampled from the reference, and ``s`` the policy's log-prob of it:
    the bonus moves probability away from what the reference would say anyway. ``form: ipo`` has
    ``(D - 1/(2 beta))^2`` in place of the logarithm. Alpha 0 is online DPO.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        beta: See `logistic`.
        alpha: Weight of the bonus, per nat.
        chosen_is_reference: ``[N]`` bool, whether the chosen side is ``y~``; else the rejected one.
        form: "sigmoid" or "ipo".

    Returns:
        ``[N]``; ``log 2 + alpha s(y~)`` where policy and reference agree.

    References:
        2405.21046.
    """
    d = difference(s_w, s_l, ref_s_w, ref_s_l)
    if form == "sigmoid":
        compared = -logsigmoid(beta * d)
    elif form == "ipo":
        compared = (d - 1 / (2 * beta)).square()
    else:
        raise ValueError(f"form={form!r} is unknown to xpo; use 'sigmoid' or 'ipo'")
    return compared + alpha * torch.where(chosen_is_reference, s_w, s_l)


def inpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, eta: float, tau: float, before_w: Tensor, before_l: Tensor,
) -> Tensor:  # fmt: skip
    """Iterative Nash policy optimisation: ``(z - 1/(2 eta))^2``, sums.

    ``z = (s_w - s_l) - (tau/eta)(ref_s_w - ref_s_l) - ((eta - tau)/eta)(before_w - before_l)``: the
    policy's margin beyond that of a mixture of the reference and the iterate before it.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        eta: The target margin is ``1 / (2 eta)`` nats.
        tau: How much of the regularisation is towards the reference, ``0 < tau <= eta``; the rest
            is towards the iterate before.
        before_w: ``[N]`` summed log-probs under the policy that sampled, no gradient.
        before_l: See ``before_w``.

    Returns:
        ``[N]``, squared nats; ``1 / (4 eta^2)`` where all three agree. IPO on sums with beta = eta
        where tau = eta or the iterate before is the reference.

    References:
        2407.00617.
    """
    share = tau / eta
    margin = share * (ref_s_w - ref_s_l) + (1 - share) * (before_w - before_l)
    return (s_w - s_l - margin.detach() - 1 / (2 * eta)).square()


def trpa(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, scale: Tensor | float = 1.0,
) -> Tensor:  # fmt: skip
    """Trust region preference approximation: ``-LS(scale beta (h_w / n_w - h_l / n_l))``, MEANS.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        beta: See `logistic`; of means.
        scale: ``[N]`` or a number: 2.5 where the chosen side is of the best level.

    Returns:
        ``[N]``; log 2 where policy and reference agree. `ln_dpo` where the scale is 1.

    References:
        2504.04524 and the code released with it.
    """
    a_w = (s_w - ref_s_w) / n_w.clamp(min=1)
    a_l = (s_l - ref_s_l) / n_l.clamp(min=1)
    return -logsigmoid(scale * beta * (a_w - a_l))
