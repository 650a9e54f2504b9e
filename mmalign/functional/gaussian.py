"""Gaussian steps: log-probs and KL in nats per latent element.

Every published clip range and step size of diffusion and flow policies assumes the mean over the
latent; the density of the whole latent is the number of its elements times larger.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_log_probs(
    x: Tensor, mean: Tensor, std: Tensor | float, *, latent_dims: int = 3
) -> Tensor:
    """``mean over latent elements of -(x - mean)^2 / (2 std^2) - log std - log(2 pi) / 2``.

    Args:
        x: ``[..., C, H, W]`` the step that was taken; its gradient is cut, as the sample is data.
        mean: ``[..., C, H, W]`` the policy's mean.
        std: A positive number, or a tensor that broadcasts against ``x`` (a deviation of each row
            is ``[B, 1, 1, 1]``).
        latent_dims: How many trailing axes make up the latent.

    Returns:
        ``[...]`` float32 (float64 where the input is), nats per latent element.

    References:
        2305.13301, released code.
    """
    x, mean = _exact(x).detach(), _exact(mean)
    deviation = _deviation(std, x)
    z = (x - mean) / deviation
    every = -z.square() / 2 - deviation.log() - math.log(2 * math.pi) / 2
    return every.mean(_axes(latent_dims))


def gaussian_kl(
    mean: Tensor, reference: Tensor, std: Tensor | float, *, latent_dims: int = 3
) -> Tensor:
    """``mean over latent elements of (mean - reference)^2 / (2 std^2)``: KL at one deviation.

    Args:
        mean: ``[..., C, H, W]`` the policy's mean.
        reference: ``[..., C, H, W]`` the reference's mean.
        std: The deviation of the whole step, as in `gaussian_log_probs`: for a move of an SDE it
            includes the square root of the time it takes.
        latent_dims: How many trailing axes make up the latent.

    Returns:
        ``[...]`` nats per latent element; 0 where the means agree.
    """
    mean, reference = _exact(mean), _exact(reference)
    z = (mean - reference) / _deviation(std, mean)
    return (z.square() / 2).mean(_axes(latent_dims))


def gaussian_log_collision(std: Tensor) -> Tensor:
    """``-log std - log(4 pi) / 2``: log of the integral of the squared density, per element.

    The integral stands in for the probability that two draws of a discrete step agree.

    Args:
        std: ``[...]``, positive, the deviation of the whole step.

    Returns:
        ``[...]`` nats per latent element; a step that lands on its mean has a log-density
        ``log(2) / 2`` above it.
    """
    return -std.log() - math.log(4 * math.pi) / 2


def _exact(x: Tensor) -> Tensor:
    # In half precision the square of a small difference loses the ratio altogether.
    return x if x.dtype == torch.float64 else x.float()


def _deviation(std: Tensor | float, like: Tensor) -> Tensor:
    if isinstance(std, Tensor):
        return std.to(like)
    if std <= 0:
        raise ValueError(f"std={std} is no deviation of a Gaussian step; it must be positive")
    return like.new_tensor(std)


def _axes(latent_dims: int) -> tuple[int, ...]:
    if latent_dims < 1:
        raise ValueError(f"latent_dims={latent_dims}: a latent has at least one axis")
    return tuple(range(-latent_dims, 0))
