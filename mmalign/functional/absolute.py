"""Pairwise losses in which each side's own reward counts, not the difference alone.

See `logistic` for the common arguments. With ``r = beta h``, adding one number to both sides'
log-probs changes these losses.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional.logistic import difference


def nca_pair(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Noise-contrastive alignment: ``-LS(r_w) - LS(-r_w) / 2 - LS(-r_l) / 2``, sums.

    Returns:
        ``[N]``; 2 log 2 where policy and reference agree.

    References:
        2402.05369.
    """
    r_w, r_l = beta * (s_w - ref_s_w), beta * (s_l - ref_s_l)
    return -logsigmoid(r_w) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)


def bco(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, shift: float | Tensor = 0.0,
) -> Tensor:  # fmt: skip
    """Binary classifier optimisation: ``-LS(r_w - shift) - LS(-(r_l - shift))``, sums.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: Not read.
        n_l: Not read.
        beta: See the module `logistic`.
        shift: Running mean of the rewards of both sides, in units of ``r``; held fixed.

    Returns:
        ``[N]``; 2 log 2 where policy and reference agree and the shift is 0.

    References:
        2404.04656.
    """
    fixed = shift.detach() if isinstance(shift, Tensor) else shift
    r_w, r_l = beta * (s_w - ref_s_w), beta * (s_l - ref_s_l)
    return -logsigmoid(r_w - fixed) - logsigmoid(fixed - r_l)


def apo_zero(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Anchored, chosen better than the model: ``1 - sigmoid(r_w) + sigmoid(r_l)``, sums.

    Returns:
        ``[N]`` in (0, 2); 1 where policy and reference agree.

    References:
        2408.06266.
    """
    return 1 - (beta * (s_w - ref_s_w)).sigmoid() + (beta * (s_l - ref_s_l)).sigmoid()


def apo_down(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Anchored, chosen worse than the model: ``sigmoid(r_w) + 1 - sigmoid(beta D)``, sums.

    Both sides are pushed down, the rejected one more.

    Returns:
        ``[N]`` in (0, 2); 1 where policy and reference agree.

    References:
        2408.06266.
    """
    d = difference(s_w, s_l, ref_s_w, ref_s_l)
    return (beta * (s_w - ref_s_w)).sigmoid() + 1 - (beta * d).sigmoid()
