"""What path and bound share: prompts, guidance, and the walk from noise to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.moves import MIN_STD
from mmalign.diffusion.processes import Schedule
from mmalign.types import Prompt

POOLED_SIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """How pictures are drawn. Scoring a path uses the same settings as sampling it.

    Attributes:
        steps: Denoising moves.
        guidance_scale: Classifier-free guidance; 1 for none, which halves the work.
        amount: Randomness of the moves: DDIM's eta, or the noise level of a flow.
        rows_per_forward: Rows in one call of the network while sampling.
    """

    steps: int
    guidance_scale: float
    amount: float
    rows_per_forward: int = 64

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows_per_forward < 1:
            raise ValueError(
                f"steps={self.steps} and rows_per_forward={self.rows_per_forward} must be positive"
            )
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale={self.guidance_scale} must be at least 1 (none)")
        if self.amount < 0:
            raise ValueError(f"the randomness of the moves must not be negative; got {self.amount}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What a walk from noise went through.

    Attributes:
        latents: ``[B, T + 1, C, H, W]`` float32; the last is the clean latent.
        scored: ``[T]`` bool, where a move was random enough to have a density.
    """

    latents: Tensor
    scored: Tensor


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """The prompts as plain text.

    Raises:
        ValueError: A prompt is a conversation or comes with images.
    """
    texts = []
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt.content, str) or prompt.images:
            raise ValueError(
                f"prompt {row}: this model draws from plain text; give a string without images"
            )
        texts.append(prompt.content)
    return texts


def rows_of(conditioning: Conditioning, prompt_of: Tensor) -> dict[str, Tensor]:
    """What is stored per prompt, for the rows that refer to it."""
    return {name: value[prompt_of.to(value.device)] for name, value in conditioning.items()}


def guided(
    family: Family,
    model: nn.Module,
    latent: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    *,
    scale: float,
) -> Tensor:
    """The prediction ``[B, C, H, W]`` float32 under classifier-free guidance.

    Both halves are one call: ``u + scale (c - u)`` with u the answer to the empty prompt.
    """
    inputs = latent.to(next(model.parameters()).dtype)
    conditioning = {name: value.to(inputs.device) for name, value in conditioning.items()}
    if scale == 1:
        return family.predict(model, inputs, timestep, conditioning).float()
    empty = rows_of(family.embed([""]), torch.zeros(len(latent), dtype=torch.int64))
    both = {name: torch.cat([empty[name].to(value), value]) for name, value in conditioning.items()}
    answers = family.predict(model, torch.cat([inputs] * 2), torch.cat([timestep] * 2), both)
    without, given = answers.float().chunk(2)
    return without + scale * (given - without)


@torch.no_grad()
def walk(
    family: Family,
    model: nn.Module,
    conditioning: Conditioning,
    *,
    settings: Denoising,
    group_size: int,
    generators: Sequence[torch.Generator],
) -> Walk:
    """From noise to clean latents.

    Every prompt's noise is drawn from its own generator, in the order in which diffusers' pipelines
    draw it (first the initial latents, then one draw a move): for one row a prompt, the pipeline
    called with the same generators draws the same pictures.

    Args:
        family: The pipeline.
        model: Its network.
        conditioning: Of the rows, ``[B, ...]``, prompt by prompt.
        settings: How.
        group_size: Rows of each prompt.
        generators: One per prompt.
    """
    device = next(model.parameters()).device
    schedule = family.process.schedule(settings.steps)
    shape = (group_size, *family.latent_shape)

    def noise() -> Tensor:
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)

    latents, scored = [noise()], []
    for step in range(len(schedule.timestep)):
        mean, std = _move(
            family,
            model,
            latents[-1],
            conditioning,
            schedule=schedule,
            step=step,
            settings=settings,
        )
        # All rows are at one level, so one deviation speaks for all.
        random = bool(std[0] >= MIN_STD)
        scored.append(random)
        latents.append(mean + std[:, None, None, None] * noise() if random else mean)
    return Walk(latents=torch.stack(latents, dim=1), scored=torch.tensor(scored))


def _move(
    family: Family,
    model: nn.Module,
    latent: Tensor,
    conditioning: Conditioning,
    *,
    schedule: Schedule,
    step: int,
    settings: Denoising,
) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, len(latent), settings.rows_per_forward):
        part = slice(start, start + settings.rows_per_forward)
        timestep = schedule.timestep[step].to(latent.device).expand(len(latent[part]))
        rows = {name: value[part] for name, value in conditioning.items()}
        parts.append(
            guided(family, model, latent[part], timestep, rows, scale=settings.guidance_scale)
        )
    level = schedule.level[step].to(latent.device).expand(len(latent))
    after = schedule.level_next[step].to(latent.device).expand(len(latent))
    return family.process.move(latent, torch.cat(parts), level, after, settings.amount)


def feature_size(family: Family) -> int:
    """Width of `features`."""
    return family.latent_shape[0] * POOLED_SIDE**2 + family.text_size + 1


def features(latent: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
    """What a critic sees before a step: ``[B, F]`` of pooled latent, mean text state and time."""
    pooled = adaptive_avg_pool2d(latent.float(), POOLED_SIDE).flatten(1)
    text = conditioning["states"].float().mean(1).to(pooled.device)
    return torch.cat([pooled, text, timestep[:, None].float() / 1000.0], dim=1).detach()
