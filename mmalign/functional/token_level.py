"""Pairwise losses that look into the steps: divergences summed over them, and weights of them.

See `logistic` for ``beta``, for ``D``, and for the arguments that are summed over steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional.logistic import difference
from mmalign.functional.stable import masked_mean


def tdpo1(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, kl_w: Tensor, kl_l: Tensor,
    *, beta: float,
) -> Tensor:  # fmt: skip
    """Token-level DPO, first form: ``-LS(beta (D - (K_l - K_w)))``, sums.

    A pair's margin is also to be met by straying less from the reference on the rejected side than
    on the chosen one; the gradient goes through both divergences.

    Args:
        s_w: ``[N]`` nats, like the next three as in `logistic`.
        s_l: See ``s_w``.
        ref_s_w: See ``s_w``.
        ref_s_l: See ``s_w``.
        kl_w: ``[N]`` nats, ``K_w = sum_t KL(reference || policy)`` at the steps of the chosen side.
        kl_l: The same of the rejected side.
        beta: Per nat.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2404.11999 and its released code.
    """
    return -logsigmoid(beta * (difference(s_w, s_l, ref_s_w, ref_s_l) - (kl_l - kl_w)))


def tdpo2(
    s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, kl_w: Tensor, kl_l: Tensor,
    *, beta: float, alpha: float = 0.5,
) -> Tensor:  # fmt: skip
    """Token-level DPO, second form: ``-LS(beta (D - alpha (K_l - sg(K_w))))``, sums.

    ``sg`` cuts the gradient: the chosen side's divergence is compared with and not increased. DPO
    is ``alpha = 0``; at ``alpha = 1`` the value, not the gradient, is that of `tdpo1`, whose
    arguments these are.

    Returns:
        ``[N]``; log 2 where policy and reference agree.

    References:
        2404.11999 and its released code.
    """
    gap = kl_l - kl_w.detach()
    return -logsigmoid(beta * (difference(s_w, s_l, ref_s_w, ref_s_l) - alpha * gap))


def critical_weights(log_scores: Tensor) -> Tensor:
    """``1 - s`` of contrastive scores ``s``: near 1 where the negative model brought a step about.

    Args:
        log_scores: ``log s <= 0``, any shape: log-probability of the step under the distribution
            ``softmax((1 + b) z_positive - b z_negative)`` of two models' logits.

    Returns:
        Same shape, in [0, 1]; 0 where the positive model is sure of the step.

    References:
        2411.19943.
    """
    return -torch.expm1(log_scores.clamp(max=0.0))


def on_policy_log_weights(log_probs: Tensor, log_collision: Tensor, mask: Tensor) -> Tensor:
    """``mean_t (l_t - log sum_v p_t(v)^2)``: how likely a row is for the policy, given its choices.

    The second term is the log of the probability that the policy's own draw would have, in the
    mean, so that an uncertain step does not count against a row.

    Args:
        log_probs: ``[..., T]`` nats.
        log_collision: ``[..., T]`` nats, ``log sum_v p_t(v)^2``.
        mask: ``[..., T]`` bool, the steps that count.

    Returns:
        ``[...]`` nats without gradient; 0 where every step is uniform, and for a row without steps.

    References:
        2406.11827.
    """
    return masked_mean((log_probs - log_collision).detach(), mask)
