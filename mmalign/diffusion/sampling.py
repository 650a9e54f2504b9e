"""What path and bound share: prompts, guidance, and the walk from noise to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mmalign.blame import Refused
from mmalign.diffusion import pictures
from mmalign.diffusion.families import Conditioning, Family
from mmalign.diffusion.moves import MIN_STD, wide
from mmalign.functional import gaussian_log_probs
from mmalign.types import Prompt

POOLED_SIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """How pictures are drawn. Scoring a path uses the same settings as sampling it.

    Attributes:
        steps: Denoising moves.
        guidance_scale: Of the pipeline's guidance; 1 for none where it is classifier-free, which
            halves the work.
        amount: Randomness of the moves: DDIM's eta, or the noise level of a flow.
        rows_per_forward: Rows in one call of the network while sampling.
        shared_start: Whether the rows of a prompt begin with the same noise.
        window: How many moves in a row are random, the others being those of the deterministic
            sampler; None for all.
        window_start: The first of them, counted from 0; None to draw it anew for every prompt, the
            same for all its rows.
        min_std: Moves with a smaller deviation are those of the deterministic sampler too.
    """

    steps: int
    guidance_scale: float
    amount: float
    rows_per_forward: int = 64
    shared_start: bool = False
    window: int | None = None
    window_start: int | None = None
    min_std: float = MIN_STD

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows_per_forward < 1:
            raise ValueError(
                f"steps={self.steps} and rows_per_forward={self.rows_per_forward} must be positive"
            )
        if self.guidance_scale < 1:
            raise ValueError(f"guidance_scale={self.guidance_scale} must be at least 1 (none)")
        if self.amount < 0:
            raise ValueError(f"the randomness of the moves must not be negative; got {self.amount}")
        if self.min_std < MIN_STD:
            raise ValueError(
                f"min_std={self.min_std} must be at least {MIN_STD}: a move with less noise has no "
                "usable density"
            )
        if self.window is None:
            if self.window_start is not None:
                raise ValueError("window_start says where a window begins; set `window` too")
            return
        first = self.window_start or 0
        if self.window < 1 or first < 0 or first + self.window > self.steps:
            raise ValueError(
                f"a window of {self.window} moves from move {first} on does not fit into "
                f"{self.steps} steps"
            )

    def random_moves(self, generators: Sequence[torch.Generator]) -> Tensor:
        """``[P, T]`` bool: which moves of each prompt may be random; draws the window's place."""
        every = torch.ones(len(generators), self.steps, dtype=torch.bool)
        if self.window is None:
            return every
        number = torch.arange(self.steps)
        for row, generator in enumerate(generators):
            first = self.window_start
            if first is None:
                places = self.steps - self.window + 1
                first = int(torch.randint(places, (1,), generator=generator))
            every[row] = (number >= first) & (number < first + self.window)
        return every


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What a walk from noise went through.

    Attributes:
        latents: ``[B, T + 1, ...]`` float32; the last is the clean latent.
        scored: ``[P, T]`` bool, which moves were random enough to have a density.
        log_probs: ``[B, T]`` float32 log-density of the moves, nats per latent element; 0 where
            they have none.
    """

    latents: Tensor
    scored: Tensor
    log_probs: Tensor


def texts_of(prompts: Sequence[Prompt], *, pictures: int = 0) -> list[str]:
    """The prompts as plain text.

    Args:
        prompts: What is asked.
        pictures: How many pictures each comes with.

    Raises:
        ValueError: A prompt is a conversation, or has another number of pictures.
    """
    texts = []
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt.content, str) or len(prompt.images) != pictures:
            number = {0: "without images", 1: "with one image, the picture to edit"}[pictures]
            raise Refused(
                "prompt", row, f": this model draws from plain text; give a string {number}"
            )
        texts.append(prompt.content)
    return texts


def conditions(family: Family, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the network reads of each prompt: ``[P, ...]`` by name.

    Raises:
        ValueError: A prompt does not fit the model.
    """
    if not family.edits:
        return family.embed(texts_of(prompts))
    found = family.embed(texts_of(prompts, pictures=1))
    sizes = (family.latents.size,)
    given = [
        [pictures.fitted(prompt.images[0], ("prompt", row), family.latents, sizes=sizes)]
        for row, prompt in enumerate(prompts)
    ]
    return {**found, "picture": pictures.encode(family.latents, given, noise=None)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What rows are to show: stored once per prompt, spread over rows only where they are used.

    Attributes:
        prompts: ``[P, ...]`` by name.
        prompt_of: ``[B]`` the prompt of each row.
    """

    prompts: Conditioning
    prompt_of: Tensor

    def rows(self, part: slice, device: torch.device) -> dict[str, Tensor]:
        """``[rows, ...]`` by name, on ``device``."""
        return {
            name: value.to(device)[self.prompt_of[part].to(device)]
            for name, value in self.prompts.items()
        }


def guided(
    family: Family,
    model: nn.Module,
    latent: Tensor,
    timestep: Tensor,
    asked: Asked,
    *,
    settings: Denoising,
) -> Tensor:
    """The prediction ``[B, ...]`` float32 under the pipeline's guidance.

    Without a gradient at most ``rows_per_forward`` rows are in one call, so
    that sampling and reference scores take no more memory for a longer path; with one they are as
    many as the microbatch holds.
    """
    inputs = latent.to(next(model.parameters()).dtype)
    rows = len(inputs) if torch.is_grad_enabled() else settings.rows_per_forward
    parts = []
    for start in range(0, len(inputs), rows):
        part = slice(start, start + rows)
        given = asked.rows(part, inputs.device)
        parts.append(
            family.guidance.answer(
                family, model, inputs[part], timestep[part], given, settings.guidance_scale
            )
        )
    return torch.cat(parts)


@torch.no_grad()
def walk(
    family: Family,
    model: nn.Module,
    prompts: Conditioning,
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
        prompts: ``[P, ...]`` by name.
        settings: How.
        group_size: Rows of each prompt.
        generators: One per prompt.

    Raises:
        ValueError: A latent is not finite.
    """
    device = next(model.parameters()).device
    schedule = family.process.schedule(settings.steps)
    shape = (group_size, *family.latents.shape)
    prompt_of = torch.arange(len(generators)).repeat_interleave(group_size)
    asked = Asked(prompts=prompts, prompt_of=prompt_of)
    may = settings.random_moves(generators)

    def noise() -> Tensor:
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)

    latents, scored, log_probs = [_start(family, settings, group_size, generators, device)], [], []
    for step in range(len(schedule.timestep)):
        timestep, level, after = (
            value[step].to(device).expand(len(prompt_of))
            for value in (schedule.timestep, schedule.level, schedule.level_next)
        )
        answer = guided(family, model, latents[-1], timestep, asked, settings=settings)
        mean, std = family.process.move(latents[-1], answer, level, after, settings.amount)
        # All rows are at one level, so one deviation speaks for all.
        random = bool(std[0] >= settings.min_std)
        scored.append(may[:, step] & random)
        taken = mean + wide(std, mean) * noise() if random else mean
        if not (random and bool(may[:, step].all())):
            still, _ = family.process.move(latents[-1], answer, level, after, 0.0)
            here = may[prompt_of, step].to(device) & random
            taken = torch.where(wide(here, mean) > 0, taken, still)
        latents.append(taken)
        log_probs.append(density(taken, mean, std) if random else torch.zeros_like(std))
    found = torch.stack(latents, dim=1)
    _require_finite(found, group_size)
    return Walk(
        latents=found, scored=torch.stack(scored, dim=1), log_probs=torch.stack(log_probs, dim=1)
    )


def _start(
    family: Family,
    settings: Denoising,
    group_size: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Tensor:
    """The noise ``[B, ...]`` that walks begin with."""
    rows = 1 if settings.shared_start else group_size
    shape = (rows, *family.latents.shape)
    drawn = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)
    return drawn.repeat_interleave(group_size // rows, 0)


def _require_finite(latents: Tensor, group_size: int) -> None:
    """Stop where ``[B, T + 1, ...]`` latents have become no numbers: nobody can learn from them."""
    bad = (~latents.flatten(2).isfinite().all(2)).nonzero()
    if len(bad):
        row, step = bad[0].tolist()
        raise ValueError(
            f"the latent of prompt {row // group_size} (row {row}) is not finite after move {step} "
            "of sampling; the network overflows: use dtype float32 or bfloat16, or go back to a "
            "checkpoint from before its weights went astray"
        )


def density(after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``[B]`` log-density of moves that went to ``after``, nats per latent element.

    Args:
        after: ``[B, ...]`` the latents after the move.
        mean: ``[B, ...]`` the move's mean.
        std: ``[B]`` its deviation.
    """
    return gaussian_log_probs(after, mean, wide(std, mean), latent_dims=mean.ndim - 1)


def feature_size(family: Family) -> int:
    """Width of `features`."""
    return prod(family.latents.shape[:-2]) * POOLED_SIDE**2 + family.text_size + 1


def features(latent: Tensor, timestep: Tensor, asked: Asked) -> Tensor:
    """What a critic sees before a step: ``[B, F]`` of pooled latent, mean text state and time."""
    pooled = adaptive_avg_pool2d(latent.float().flatten(1, -3), POOLED_SIDE).flatten(1)
    states = asked.prompts["states"].float()
    text = states.mean(1)
    if "mask" in asked.prompts:
        read = asked.prompts["mask"].to(states)[..., None]
        text = (states * read).sum(1) / read.sum(1)
    text = text.to(pooled.device)[asked.prompt_of]
    return torch.cat([pooled, text, timestep[:, None].float() / 1000.0], dim=1).detach()
