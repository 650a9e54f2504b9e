"""What chance decides about a bound: where in the process, which noise, and whether the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmalign.diffusion.processes import TimestepDraw, draw_quantiles

if TYPE_CHECKING:
    from mmalign.diffusion.frozen import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """How the draws of a prompt are made.

    Attributes:
        draws: (timestep, noise) draws of a prompt, stratified over the timesteps. Their weights
            are folded into the log-probs, so that beta means the same for any number.
        timestep_range: The noise levels drawn from, as fractions of the whole: 0 clean, 1 noise.
        timestep_draw: Density within the range.
        offset_noise: Deviation of noise that is one number for each channel, added to the noise of
            single elements; 0 for none.
        prompt_dropout: Probability that a prompt is scored as if it were empty.
    """

    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: TimestepDraw = "uniform"
    offset_noise: float = 0.0
    prompt_dropout: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.timestep_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"timestep_range={self.timestep_range} must lie in [0, 1], rising")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1")
        if self.offset_noise < 0:
            raise ValueError(f"offset_noise={self.offset_noise} must not be negative")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout={self.prompt_dropout} must lie in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The draws of one prompt, which its rows, both sides of a pair and the reference share.

    Attributes:
        quantile: ``[T]`` where in the process.
        noise: ``[T, *shape]``.
        dropped: Whether the prompt is left out.
    """

    quantile: Tensor
    noise: Tensor
    dropped: bool


def draw(generator: torch.Generator, settings: DrawSettings, shape: Sequence[int]) -> Draw:
    """Draw for one prompt from its own generator.

    Args:
        generator: The prompt's.
        settings: How.
        shape: Of a latent, channels first.
    """
    quantile = draw_quantiles(
        (settings.draws,),
        generator=generator,
        within=settings.timestep_range,
        draw=settings.timestep_draw,
    )
    noise = torch.randn((settings.draws, *shape), generator=generator)
    if settings.offset_noise > 0:
        each = (settings.draws, shape[0], *[1] * (len(shape) - 1))
        noise = noise + settings.offset_noise * torch.randn(each, generator=generator)
    dropped = False
    if settings.prompt_dropout > 0:
        dropped = float(torch.rand((), generator=generator)) < settings.prompt_dropout
    return Draw(quantile=quantile, noise=noise, dropped=dropped)


def without_dropped(
    given: Mapping[str, Tensor], dropped: Sequence[bool], texts: Texts
) -> dict[str, Tensor]:
    """Conditions ``[P, ...]`` with what stands for no prompt in the place of dropped ones.

    What is no part of a text (a picture to edit) stays.
    """
    if not any(dropped):
        return dict(given)
    empty, where = texts.empty(), torch.tensor(list(dropped))
    found = {}
    for name, value in given.items():
        if name in empty:
            wide = where.to(value.device).view(-1, *[1] * (value.ndim - 1))
            value = torch.where(wide, empty[name].to(value), value)
        found[name] = value
    return found
