"""Pairwise losses with several rewards (see `mmalign.functional.logistic` for the arguments)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from mmalign.functional.logistic import difference

MODPOForm = Literal["sigmoid", "hinge"]


def modpo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, weight: float, margin: Tensor, form: MODPOForm = "sigmoid",
) -> Tensor:  # fmt: skip
    """Multi-objective DPO: ``-LS((beta D - margin) / w_k)``, sums.

    The pairs are of objective k. What the other objectives say of a pair, a frozen reward each,
    stands in the margin, which is subtracted: where they favour the chosen side already, the policy
    needs less of a difference of its own.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        beta: See `logistic`.
        weight: ``w_k``, of the objective whose pairs these are.
        margin: ``[N]`` sum over the other objectives i of ``w_i (R_i(y_w) - R_i(y_l))``, on the
            scale of ``beta D``; no gradient is taken.
        form: "sigmoid", or "hinge": ``max(0, 1 - (beta D - margin) / w_k)``.

    Returns:
        ``[N]``; log 2 where policy and reference agree and the margin is 0. DPO at ``beta / w_k``
        where it is 0 throughout.

    References:
        2310.03708.
    """
    z = (beta * difference(s_w, s_l, ref_s_w, ref_s_l) - margin.detach()) / weight
    if form == "sigmoid":
        return -logsigmoid(z)
    if form == "hinge":
        return relu(1 - z)
    raise ValueError(f"form={form!r} is unknown to modpo; use 'sigmoid' or 'hinge'")
