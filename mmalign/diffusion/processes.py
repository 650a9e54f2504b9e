"""Noise processes: how a latent is noised, what a network is to predict, and how it is denoised.

A level says how noisy a latent is, a timestep is what the network is told about it. Both are stored
in the trajectory, so that scoring asks no scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mmalign.diffusion.moves import (
    Prediction,
    clean_and_noise,
    ddim_move,
    flow_constant_move,
    flow_sde_move,
    wide,
)

TimestepDraw = Literal["uniform", "logit_normal"]
Spacing = Literal["scheduler", "even"]
SDE = Literal["marginal", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The moves of one trajectory, each ``[T]`` float32.

    Attributes:
        timestep: What the network is told.
        level: Noise level before the move.
        level_next: After it.
    """

    timestep: Tensor
    level: Tensor
    level_next: Tensor


class Process(Protocol):
    """What an adapter asks of a noise process. Levels are ``[B]``, latents ``[B, ...]``."""

    def schedule(self, steps: int) -> Schedule:
        """The moves that the scheduler makes in ``steps`` steps."""
        ...

    def at(self, quantile: Tensor) -> tuple[Tensor, Tensor]:
        """Timestep and level at quantiles in [0, 1) of the training range, 0 being clean."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """A clean latent brought to a level."""
        ...

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What a perfect network would answer."""
        ...

    def clean(self, x: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """The clean latent that the network expects of ``x``."""
        ...

    def move(
        self, x: Tensor, prediction: Tensor, level: Tensor, level_next: Tensor, amount: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``[B]`` of a move; ``amount`` 0 is the deterministic one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The variance-preserving process of DDPM and DDIM; the level is the cumulative alpha.

    Attributes:
        scheduler: diffusers' DDIMScheduler, which says what its steps are.
        alphas: ``[num_train_timesteps]`` cumulative alphas.
        final_alpha: The level after the last move.
        prediction_type: What the network predicts.
    """

    scheduler: Any = field(repr=False)
    alphas: Tensor = field(repr=False)
    final_alpha: float
    prediction_type: Prediction

    def schedule(self, steps: int) -> Schedule:
        """The scheduler's own timesteps; each move goes to ``t - num_train_timesteps // steps``."""
        self.scheduler.set_timesteps(steps)
        times = torch.as_tensor(self.scheduler.timesteps).long().cpu()
        before = times - len(self.alphas) // steps
        final = torch.tensor(self.final_alpha)
        after = torch.where(before >= 0, self.alphas[before.clamp(min=0)], final)
        return Schedule(timestep=times.float(), level=self.alphas[times], level_next=after)

    def at(self, quantile: Tensor) -> tuple[Tensor, Tensor]:
        """Whole training timesteps."""
        count = len(self.alphas)
        index = (quantile * count).long().clamp(max=count - 1)
        return index.float(), self.alphas.to(quantile.device)[index]

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """``sqrt(a) clean + sqrt(1 - a) noise``."""
        return wide(level, clean).sqrt() * clean + (1 - wide(level, clean)).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Noise, v or the clean latent, by ``prediction_type``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return wide(level, clean).sqrt() * noise - (1 - wide(level, clean)).sqrt() * clean
        return clean

    def clean(self, x: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """By ``prediction_type``."""
        return clean_and_noise(x, prediction, level, prediction_type=self.prediction_type)[0]

    def move(
        self, x: Tensor, prediction: Tensor, level: Tensor, level_next: Tensor, amount: float
    ) -> tuple[Tensor, Tensor]:
        """A DDIM move; ``amount`` is eta."""
        return ddim_move(
            x,
            prediction,
            alpha=level,
            alpha_next=level_next,
            eta=amount,
            prediction_type=self.prediction_type,
        )


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A rectified flow; the level is sigma, the network predicts noise minus clean.

    Attributes:
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler.
        num_train_timesteps: What sigma = 1 is called when talking to the network.
        mu: The shift of the levels where it depends on the size of the picture (dynamic shifting);
            None where the scheduler's own shift is fixed.
        spacing: Where the levels lie before they are shifted: "scheduler" from sigma_max to
            sigma_min, "even" at 1, (n - 1)/n, ... 1/n. It is what the pipeline itself does.
        sde: Which diffusion makes the flow stochastic: "marginal", that of Flow-GRPO, which grows
            with the level, or "constant", that of DanceGRPO. Both keep the flow's marginals.
    """

    scheduler: Any = field(repr=False)
    num_train_timesteps: int
    mu: float | None = None
    spacing: Spacing = "scheduler"
    sde: SDE = "marginal"

    def schedule(self, steps: int) -> Schedule:
        """The scheduler's own sigmas, shifted as it shifts them."""
        even = [1.0 - k / steps for k in range(steps)] if self.spacing == "even" else None
        self.scheduler.set_timesteps(steps, sigmas=even, mu=self.mu)
        sigmas = torch.as_tensor(self.scheduler.sigmas).float().cpu()
        times = torch.as_tensor(self.scheduler.timesteps).float().cpu()
        return Schedule(timestep=times, level=sigmas[:-1], level_next=sigmas[1:])

    def at(self, quantile: Tensor) -> tuple[Tensor, Tensor]:
        """Sigma is the quantile itself."""
        return quantile * self.num_train_timesteps, quantile

    def noised(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """``(1 - sigma) clean + sigma noise``."""
        return (1 - wide(level, clean)) * clean + wide(level, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """The velocity, the same at every level."""
        return noise - clean

    def clean(self, x: Tensor, prediction: Tensor, level: Tensor) -> Tensor:
        """``x - sigma v``."""
        return x.float() - wide(level, x) * prediction.float()

    def move(
        self, x: Tensor, prediction: Tensor, level: Tensor, level_next: Tensor, amount: float
    ) -> tuple[Tensor, Tensor]:
        """A move of the stochastic flow; ``amount`` is its noise level.

        The last move, to sigma 0, is the Euler step to the clean latent, whatever the amount: noise
        would stay in the picture, and after evenly spaced levels there would be much of it.
        """
        taken = flow_sde_move if self.sde == "marginal" else flow_constant_move
        mean, std = taken(x, prediction, sigma=level, sigma_next=level_next, noise_level=amount)
        last, clean = level_next == 0, self.clean(x, prediction, level)
        mean = torch.where(wide(last, x) > 0, clean, mean)
        return mean, torch.where(last, torch.zeros_like(std), std)


def draw_quantiles(
    shape: tuple[int, ...],
    *,
    generator: torch.Generator,
    within: tuple[float, float],
    draw: TimestepDraw,
) -> Tensor:
    """Where in the process a bound is taken.

    Several draws are stratified: the k-th of n lies in the k-th n-th of the distribution, so that
    their mean is over the whole range. One draw is a plain draw.

    Args:
        shape: ``(..., n)``.
        generator: Where chance comes from.
        within: The range of noise that is drawn from, as fractions of the whole, 0 being clean.
        draw: Uniform in the range, or the logit-normal density restricted to it.

    Returns:
        Quantiles of shape ``shape`` in [0, 1).
    """
    count = shape[-1]
    unit = (torch.arange(count) + torch.rand(shape, generator=generator)) / count
    low, high = torch.tensor(within).unbind()
    if draw == "uniform":
        return low + (high - low) * unit
    bounds = torch.special.ndtr(torch.logit(torch.stack([low, high])))
    return torch.sigmoid(torch.special.ndtri(bounds[0] + (bounds[1] - bounds[0]) * unit))
