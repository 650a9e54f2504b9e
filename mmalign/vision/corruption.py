"""What takes a picture away from a model by degrees: hidden tokens, and noise on pixels.

Pure functions of a generator, so that one corruption serves several completions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PIXELS = "pixel_values"
"""What processors call the pixels of pictures."""


def attended(count: int, threshold: float, *, generator: torch.Generator) -> Tensor:
    """Which picture tokens stay in sight: ``rho_i >= threshold``, rho uniform in [0, 1).

    Args:
        count: Tokens.
        threshold: 0 hides nothing, 1 everything; the expected share of hidden tokens.
        generator: One number a token.

    Returns:
        ``[count]`` bool, True where attention may look.

    References:
        2407.02477, attention masking of image embeddings.
    """
    return torch.rand(count, generator=generator) >= threshold


def alpha_bar(steps: int) -> float:
    """The share of a picture's variance that is left after ``steps`` of forward diffusion.

    ``prod_{k < steps} (1 - beta_k)`` with
    ``beta_k = sigmoid(-6 + 12 k / 1000) (0.5e-2 - 1e-5) + 1e-5``.

    Returns:
        1 after no step, 0.747392 after 500.

    References:
        2407.02477, the variant of BDHS with noise.
    """
    k = torch.arange(steps, dtype=torch.float64)
    betas = torch.sigmoid(-6 + 12 * k / 1000) * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - betas).prod())


def noised(pixels: Tensor, steps: int, *, generator: torch.Generator) -> Tensor:
    """``sqrt(abar) x + sqrt(1 - abar) e``, e standard normal: ``steps`` of forward diffusion.

    Args:
        pixels: Any shape, as the processor normalised them.
        steps: See `alpha_bar`; 0 changes nothing.
        generator: Draws e, in float32.

    Returns:
        The same shape and dtype.
    """
    left = alpha_bar(steps)
    noise = torch.randn(pixels.shape, generator=generator)
    return (left**0.5 * pixels.float() + (1 - left) ** 0.5 * noise).to(pixels)


def with_noise(
    per_image: Mapping[str, Tensor], steps: int, *, generator: torch.Generator
) -> dict[str, Tensor]:
    """What a processor made of a prompt's pictures, their pixels `noised`.

    Where a processor lays a picture out twice, as the two moments of a film (Qwen2-VL), each of
    them gets noise of its own.
    """
    return {**per_image, PIXELS: noised(per_image[PIXELS], steps, generator=generator)}
