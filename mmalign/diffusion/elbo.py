"""The evidence bound as a policy: a step is one (timestep, noise) draw (Diffusion-DPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmalign.diffusion import pictures, saving
from mmalign.diffusion.families import Family
from mmalign.diffusion.pictures import LatentDraw
from mmalign.diffusion.processes import TimestepDraw, draw_quantiles
from mmalign.diffusion.sampling import (
    Asked,
    Denoising,
    conditions,
    feature_size,
    features,
    guided,
    walk,
)
from mmalign.protocols import Likelihood, Want
from mmalign.types import Output, Prompt, Scores, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class ElboSettings:
    """How the bound is estimated.

    Attributes:
        denoising: How pictures are sampled.
        draws: (timestep, noise) draws of a prompt, stratified over the timesteps. Their weights
            are folded into the log-probs, so that beta means the same for any number.
        timestep_range: The noise levels drawn from, as fractions of the whole: 0 clean, 1 noise.
        timestep_draw: Density within the range.
        latent: The VAE's posterior mean, or a draw from it.
    """

    denoising: Denoising
    draws: int = 1
    timestep_range: tuple[float, float] = (0.0, 1.0)
    timestep_draw: TimestepDraw = "uniform"
    latent: LatentDraw = "mean"

    def __post_init__(self) -> None:
        low, high = self.timestep_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"timestep_range={self.timestep_range} must lie in [0, 1], rising")
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1")


class ElboAdapter:
    """Scores pictures by how well they are denoised; see `mmalign.protocols.Adapter`.

    ``log_probs[b, t]`` is minus one half of the mean squared error over the latent, divided by the
    number of draws. With one draw, DPO on it is the published Diffusion-DPO loss at the same beta.

    ``stepwise`` holds ``latent`` and ``noise`` ``[B, T, ...]``, ``timestep`` and ``level``
    ``[B, T]``. Noise and timestep are drawn once per prompt: its rows, hence both sides of a pair,
    and the reference see the same.

    Args:
        family: The pipeline.
        settings: Draws and sampling.
    """

    likelihood: Likelihood = "bound"

    def __init__(self, *, family: Family, settings: ElboSettings) -> None:
        self.family = family
        self.settings = settings
        # A bound is of the conditional network, however pictures are sampled.
        scale = family.guidance.of_bound(settings.denoising.guidance_scale)
        self.unguided = replace(settings.denoising, guidance_scale=scale)
        self.feature_size = feature_size(family)

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded pictures as latents with their draws.

        Raises:
            ValueError: A picture or a prompt does not fit the model.
        """
        settings = self.settings
        flat = [output for group in outputs for output in group]
        images = [
            pictures.checked(output, f"row {row}", self.family.latents)
            for row, output in enumerate(flat)
        ]
        draws = [self._draw(generator) for generator in generators]
        shape = self.family.latents.shape
        noise = None
        if settings.latent == "sample":
            noise = torch.cat(
                [
                    torch.randn((len(group), *shape), generator=generator)
                    for group, generator in zip(outputs, generators, strict=True)
                ]
            )
        clean = pictures.encode(
            self.family.latents,
            images,
            noise=noise,
            rows_per_forward=settings.denoising.rows_per_forward,
        )
        counts = torch.tensor([len(group) for group in outputs])
        return self._trajectory(prompts, clean, counts, draws, flat)

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` pictures of each prompt; their own final latents are what is scored."""
        settings = self.settings.denoising
        embedded = conditions(self.family, prompts, settings)
        found = walk(
            self.family,
            model,
            embedded,
            settings=settings,
            group_size=group_size,
            generators=generators,
        )
        clean = found.latents[:, -1]
        outputs = pictures.decode(self.family, clean, rows_per_forward=settings.rows_per_forward)
        draws = [self._draw(generator) for generator in generators]
        counts = torch.full((len(prompts),), group_size)
        return self._trajectory(prompts, clean, counts, draws, outputs)

    def scores(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        *,
        want: Want = frozenset(),
        against: nn.Module | None = None,
    ) -> Scores:
        """Minus half the mean squared error of each draw, over the number of draws.

        Raises:
            ValueError: Something is wanted that a bound does not have (kl, entropy).
        """
        if want - {"features"}:
            raise ValueError(
                f"a bound has no {sorted(want)}: use likelihood: path where an objective needs it"
            )
        device = next(model.parameters()).device
        shape = trajectory.mask.shape
        at = {k: v.to(device).flatten(0, 1) for k, v in trajectory.stepwise.items()}
        row_of = torch.arange(shape[0], device=device).repeat_interleave(shape[1])
        prompts = {k: v.to(device) for k, v in trajectory.static.items()}
        asked = Asked(prompts=prompts, prompt_of=trajectory.prompt_of.to(device)[row_of])
        process = self.family.process
        noisy = process.noised(at["latent"], at["noise"], at["level"])
        answer = guided(self.family, model, noisy, at["timestep"], asked, settings=self.unguided)
        target = process.target(at["latent"], at["noise"], at["level"])
        error = (target - answer).square().mean(dim=tuple(range(1, answer.ndim))).view(shape)
        log_probs = -0.5 / self.settings.draws * error
        seen = None
        if "features" in want:
            seen = features(noisy, at["timestep"], asked).view(*shape, -1)
        mask = trajectory.mask.to(device)
        return Scores(
            log_probs=torch.where(mask, log_probs, torch.zeros_like(log_probs)), features=seen
        )

    def prompt_lengths(self, trajectory: Trajectory) -> Tensor:
        """0: a prompt conditions every step and takes no position of its own."""
        return torch.zeros(trajectory.num_prompts, dtype=torch.int64)

    def describe(self) -> str:
        """What scores depend on: how draws are made is in the timesteps and the noise of a row."""
        return f"ElboAdapter({self.family.describe()}, draws={self.settings.draws})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what diffusers loads."""
        saving.save(self.family, model, directory)

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantiles ``[T]`` and noise ``[T, ...]`` of one prompt."""
        settings = self.settings
        quantile = draw_quantiles(
            (settings.draws,),
            generator=generator,
            within=settings.timestep_range,
            draw=settings.timestep_draw,
        )
        shape = (settings.draws, *self.family.latents.shape)
        return quantile, torch.randn(shape, generator=generator)

    def _trajectory(
        self,
        prompts: Sequence[Prompt],
        clean: Tensor,
        counts: Tensor,
        draws: Sequence[tuple[Tensor, Tensor]],
        outputs: Sequence[Output],
    ) -> Trajectory:
        device, steps = clean.device, self.settings.draws
        prompt_of = torch.arange(len(prompts)).repeat_interleave(counts).to(device)
        quantile = torch.stack([q for q, _ in draws]).to(device)
        noise = torch.stack([n for _, n in draws]).to(device)
        timestep, level = self.family.process.at(quantile)
        return Trajectory(
            mask=torch.ones(len(clean), steps, dtype=torch.bool, device=device),
            prompt_of=prompt_of,
            static=conditions(self.family, prompts, self.settings.denoising),
            stepwise={
                "latent": clean[:, None].expand(-1, steps, *clean.shape[1:]),
                "noise": noise[prompt_of],
                "timestep": timestep[prompt_of],
                "level": level[prompt_of],
            },
            outputs=list(outputs),
            separable=True,
        )
