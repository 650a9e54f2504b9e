"""One denoising move, used to sample AND to score, so that the two cannot drift apart.

A move of a latent ``x`` is a Gaussian step ``x' = mean + std * z``. Levels say how noisy a latent
is: the cumulative product of alphas of a diffusion (1 is clean), the sigma of a rectified flow (0
is clean). Everything is float32: in half precision the ratio of two nearly equal densities is lost.

A latent has whatever axes its pipeline gives it, ``[B, ...]``: channels, height and width of a
picture, frames as well of a clip.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]

MIN_STD = 1e-3
"""The least standard deviation that can be scored: below it a move is taken without noise.

The last DDIM move ends on the clean latent, and the last one of a flow is too short to hold any
noise: a density with a deviation near 0 has no usable logarithm.
"""


def clean_and_noise(
    x: Tensor, prediction: Tensor, alpha: Tensor, *, prediction_type: Prediction
) -> tuple[Tensor, Tensor]:
    """What a diffusion network's output says about the clean latent and the noise in ``x``.

    Args:
        x: ``[B, ...]`` noisy latent, ``sqrt(alpha) clean + sqrt(1 - alpha) noise``.
        prediction: ``[B, ...]`` the network's output.
        alpha: ``[B]`` cumulative alpha of ``x``, in (0, 1).
        prediction_type: What the network predicts; v is
            ``sqrt(alpha) noise - sqrt(1 - alpha) clean``.

    Returns:
        Clean latent and noise, each ``[B, ...]`` float32.
    """
    x, prediction = x.float(), prediction.float()
    signal, spread = wide(alpha, x).sqrt(), (1 - wide(alpha, x)).sqrt()
    if prediction_type == "epsilon":
        return (x - spread * prediction) / signal, prediction
    if prediction_type == "v_prediction":
        return signal * x - spread * prediction, signal * prediction + spread * x
    return prediction, (x - signal * prediction) / spread


def ddim_move(
    x: Tensor,
    prediction: Tensor,
    *,
    alpha: Tensor,
    alpha_next: Tensor,
    eta: float,
    prediction_type: Prediction = "epsilon",
) -> tuple[Tensor, Tensor]:
    """The Gaussian of a DDIM move.

    With variance ``s^2 = (1 - a')/(1 - a) (1 - a/a')`` and ``std = eta s`` the mean is
    ``sqrt(a') clean + sqrt(1 - a' - std^2) noise``.

    Args:
        x: ``[B, ...]`` latent before the move.
        prediction: ``[B, ...]`` the (guided) output of the network at ``x``.
        alpha: ``[B]`` cumulative alpha before the move.
        alpha_next: ``[B]`` after it; the scheduler's final value for the last move. Where it is 1
            the move is deterministic and ``std`` is 0: such a move must not be scored.
        eta: 0 for DDIM proper, 1 for the variance of DDPM.
        prediction_type: What the network predicts.

    Returns:
        mean ``[B, ...]`` and std ``[B]``, float32, finite at both ends.

    References:
        2010.02502 equations 12 and 16; used as a policy's step in 2305.13301.
    """
    clean, noise = clean_and_noise(x, prediction, alpha, prediction_type=prediction_type)
    before, after = alpha.float(), alpha_next.float()
    variance = (1 - after) / (1 - before) * (1 - before / after)
    std = eta * variance.clamp(min=0).sqrt()
    direction = (1 - after - std.square()).clamp(min=0).sqrt()
    return wide(after.sqrt(), x) * clean + wide(direction, x) * noise, std


def flow_sde_move(
    x: Tensor, velocity: Tensor, *, sigma: Tensor, sigma_next: Tensor, noise_level: float
) -> tuple[Tensor, Tensor]:
    """The Gaussian of a move of a rectified flow, made stochastic with the same marginals.

    With ``dt = sigma' - sigma < 0`` and ``s = a sqrt(sigma / (1 - sigma))``,
    ``mean = x (1 + s^2 dt / (2 sigma)) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt`` and
    ``std = s sqrt(-dt)``. At sigma = 1, where ``s`` would be infinite, ``1 - sigma`` inside ``s``
    is taken at the next level.

    Args:
        x: ``[B, ...]`` latent before the move, ``(1 - sigma) clean + sigma noise``.
        velocity: ``[B, ...]`` the (guided) output of the network, noise minus clean.
        sigma: ``[B]`` level before the move, in (0, 1].
        sigma_next: ``[B]`` level after it, smaller.
        noise_level: The factor ``a`` (published: 0.7); 0 gives the Euler step of the ODE.

    Returns:
        mean ``[B, ...]`` and std ``[B]``, float32.

    References:
        Flow-GRPO, 2505.05470, equation 9.
    """
    x, velocity = x.float(), velocity.float()
    before, after = sigma.float(), sigma_next.float()
    bounded = torch.where(before < 1, before, after)
    s_squared = noise_level**2 * before / (1 - bounded)
    dt = after - before
    drift = s_squared / (2 * before)
    mean = x * wide(1 + drift * dt, x) + velocity * wide((1 + drift * (1 - before)) * dt, x)
    return mean, s_squared.sqrt() * (-dt).sqrt()


def flow_constant_move(
    x: Tensor, velocity: Tensor, *, sigma: Tensor, sigma_next: Tensor, noise_level: float
) -> tuple[Tensor, Tensor]:
    """The Gaussian of a move of a rectified flow under a diffusion that is the same at all levels.

    With ``dt = sigma' - sigma < 0``, ``clean = x - sigma v`` and
    ``score = -(x - (1 - sigma) clean) / sigma^2``, ``mean = x + v dt - eta^2 score dt / 2`` and
    ``std = eta sqrt(-dt)``.

    Args:
        x: ``[B, ...]`` latent before the move, ``(1 - sigma) clean + sigma noise``.
        velocity: ``[B, ...]`` the (guided) output of the network, noise minus clean.
        sigma: ``[B]`` level before the move, in (0, 1].
        sigma_next: ``[B]`` level after it, smaller.
        noise_level: eta (published: 0.3 for pictures); 0 gives the Euler step of the ODE.

    Returns:
        mean ``[B, ...]`` and std ``[B]``, float32.

    References:
        DanceGRPO 2505.07818, released code.
    """
    x, velocity = x.float(), velocity.float()
    before, dt = sigma.float(), sigma_next.float() - sigma.float()
    clean = x - wide(before, x) * velocity
    score = -(x - wide(1 - before, x) * clean) / wide(before.square(), x)
    mean = x + wide(dt, x) * velocity - noise_level**2 / 2 * wide(dt, x) * score
    return mean, noise_level * (-dt).sqrt()


def wide(per_row: Tensor, like: Tensor) -> Tensor:
    """``[B]`` float32 with as many axes as ``like`` has, to be multiplied with it row by row."""
    return per_row.float().view(-1, *[1] * (like.ndim - 1))
