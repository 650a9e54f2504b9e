"""Pairwise losses that couple the pairs of a batch (see `logistic` for the common arguments).

Their value depends on all pairs at once, so they are not sums over pieces of a batch: an objective
that uses one must be given the whole batch in one piece.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional.logistic import require_smoothing


def aot(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Alignment by optimal transport, paired: margins of policy and reference compared by rank.

    ``d_(i)`` is the i-th smallest of ``s_w - s_l`` minus the i-th smallest of
    ``ref_s_w - ref_s_l``; the loss is `cdpo_smoothing` of ``beta d``, sums.

    Returns:
        ``[N]`` in the order of the sorted margins, not of the pairs; log 2 where policy and
        reference agree. One pair alone gives DPO.

    References:
        2406.05882.
    """
    return _by_rank(s_w - s_l, ref_s_w - ref_s_l, beta, label_smoothing, "aot")


def aot_unpaired(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Alignment by optimal transport, unpaired: log-ratios of the two sides compared by rank.

    ``d_(i)`` is the i-th smallest ``h_w`` minus the i-th smallest ``h_l``; sums.

    Returns:
        ``[N]`` in sorted order; log 2 where policy and reference agree. One pair gives DPO.

    References:
        2406.05882.
    """
    return _by_rank(s_w - ref_s_w, s_l - ref_s_l, beta, label_smoothing, "aot_unpaired")


def _by_rank(
    upper: Tensor, lower: Tensor, beta: float, label_smoothing: float, name: str
) -> Tensor:
    require_smoothing(label_smoothing, name)
    z = beta * (upper.sort().values - lower.sort().values)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
