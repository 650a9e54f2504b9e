"""Pairwise losses with a squared target margin (see `logistic` for the common arguments)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum"]


def ipo(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float, reduction: Reduction = "mean",
) -> Tensor:  # fmt: skip
    """Identity preference optimisation: ``(h_w / n_w - h_l / n_l - 1 / (2 beta))^2``.

    Args:
        s_w: ``[N]`` summed log-probs (see the module `logistic` for all six tensors).
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        n_w: ``[N]`` scored steps.
        n_l: See ``n_w``.
        beta: The paper's tau; the target margin is ``1 / (2 beta)`` nats.
        reduction: "mean" divides each log-ratio by its length, the form the authors confirmed;
            "sum" is the formula as printed.

    Returns:
        ``[N]``, squared nats; ``1 / (4 beta^2)`` where policy and reference agree.

    References:
        2310.12036, equation 17.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} is unknown to ipo; use 'mean' or 'sum'")
    h_w, h_l = s_w - ref_s_w, s_l - ref_s_l
    if reduction == "mean":
        h_w, h_l = h_w / n_w.clamp(min=1), h_l / n_l.clamp(min=1)
    return (h_w - h_l - 1 / (2 * beta)).square()


def sppo_hard(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Self-play preference optimisation: ``(h_w - 1/(2 beta))^2 + (h_l + 1/(2 beta))^2``, sums.

    The published beta is 0.001: targets of plus and minus 500 nats.

    Returns:
        ``[N]``, squared nats; ``1 / (2 beta^2)`` where policy and reference agree.

    References:
        2405.00675, with win rates 1 and 0.
    """
    target = 1 / (2 * beta)
    return (s_w - ref_s_w - target).square() + (s_l - ref_s_l + target).square()
