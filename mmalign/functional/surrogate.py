"""Losses of single steps: the clipped surrogate, the KL estimators and the critic's regression."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.functional.stable import LOG_RATIO_BOUND, exp_bounded

KLKind = Literal["k1", "k2", "k3"]


def clipped_surrogate(
    log_probs: Tensor,
    behaviour: Tensor,
    advantage: Tensor,
    *,
    epsilon: float,
    epsilon_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    """``max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon_high))`` with ``rho = exp(new - old)``.

    Args:
        log_probs: ``[B, T]`` nats, under the policy being trained.
        behaviour: ``[B, T]`` nats, under the policy that sampled; no gradient.
        advantage: ``[B, T]``, or ``[B]`` for one number a row; no gradient.
        epsilon: How far the ratio may fall.
        epsilon_high: How far it may rise; None for ``epsilon``.
        dual_clip: Where A < 0 the loss is at most ``-A dual_clip`` (> 1); None for no bound.

    Returns:
        ``[B, T]``, to be minimised; ``-A`` where the two policies agree, with the gradient of
        ``-A log_probs`` there. The log-ratio is held within +-20 nats.

    References:
        1707.06347, equation 7; two-sided 2503.14476, equation 8; dual 1912.09729.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip} would clip the ratio 1; use more, say 3")
    if advantage.dim() == log_probs.dim() - 1:
        advantage = advantage.unsqueeze(-1)
    advantage = advantage.detach()
    high = epsilon if epsilon_high is None else epsilon_high
    ratio = exp_bounded(log_probs - behaviour.detach())
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - epsilon, 1 + high))
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual_clip), loss)


def clamped_surrogate(
    log_probs: Tensor, behaviour: Tensor, advantage: Tensor, *, epsilon: float
) -> Tensor:
    """``-A clip(rho, 1 - epsilon, 1 + epsilon)``, ``rho = exp(new - old)``: no maximum is taken.

    Outside the band there is no gradient whatever the sign of A, so a step that has become too
    likely or too unlikely is not brought back, as `clipped_surrogate` would.

    Args:
        log_probs: ``[B, T]`` nats, under the policy being trained.
        behaviour: ``[B, T]`` nats, under the policy that sampled; no gradient.
        advantage: ``[B, T]``; no gradient.
        epsilon: Half the width of the band.

    Returns:
        ``[B, T]``, to be minimised; ``-A`` where the two policies agree, with the gradient of
        ``-A log_probs`` there.

    References:
        DPOK 2305.16381, released code.
    """
    ratio = exp_bounded(log_probs - behaviour.detach())
    return -advantage.detach() * ratio.clamp(1 - epsilon, 1 + epsilon)


def kl(log_probs: Tensor, reference: Tensor, *, kind: KLKind) -> Tensor:
    """Estimates of ``KL(policy || reference)`` a step, from samples of the policy.

    With ``d = log_probs - reference``: ``k1 = d``, ``k2 = d^2 / 2``, ``k3 = exp(-d) - 1 + d``.
    All three vanish where the two agree; the means of k1 and k3 are the KL, that of k2 is not.

    The gradients differ. Inside a reward (no gradient taken) use k1. As a loss on samples of the
    policy, k2 has the gradient of ``KL(policy || reference)``, k3 that of
    ``KL(reference || policy)``, and k1 a gradient whose mean is 0.

    Args:
        log_probs: Any shape, nats.
        reference: Same shape, nats.
        kind: Which estimate.

    Returns:
        Same shape, nats; k2 and k3 are never negative. For k3, d is held within +-20 nats.

    References:
        Schulman, "Approximating KL divergence" (2020); k3 is 2402.03300, equation 4.
    """
    d = log_probs - reference
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        d = d.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        return torch.expm1(-d) + d
    raise ValueError(f"kind={kind!r} is no estimate of the KL; use 'k1', 'k2' or 'k3'")


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None
) -> Tensor:
    """``0.5 max((V - R)^2, (V_old + clip(V - V_old) - R)^2)``: the critic's clipped regression.

    Args:
        values: ``[B, T]`` the critic's values, units of reward.
        old_values: ``[B, T]`` its values before the update; no gradient.
        returns: ``[B, T]`` targets; no gradient.
        clip: How far a value may move in one update, units of reward; None for no bound.

    Returns:
        ``[B, T]``, squared units of reward; 0 where the value is the return and has not moved.

    References:
        OpenAI baselines, the code released with 1707.06347.
    """
    plain = (values - returns.detach()).square()
    if clip is None:
        return plain / 2
    old = old_values.detach()
    near = old + (values - old).clamp(-clip, clip)
    return torch.maximum(plain, (near - returns.detach()).square()) / 2
