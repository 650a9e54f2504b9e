"""A walk from noise that forks: several candidates of a step from one latent, each judged (SPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmalign.diffusion import pictures
from mmalign.diffusion.moves import MIN_STD, wide
from mmalign.diffusion.sampling import Asked, density, guided
from mmalign.types import Output

if TYPE_CHECKING:
    from mmalign.diffusion.families import Conditioning, Family
    from mmalign.diffusion.sampling import Denoising

Judge = Callable[[Sequence[Output], float], Tensor]
"""``P K`` pictures, prompt by prompt, and the timestep they were predicted at -> rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """One step of P walks, taken K times.

    Attributes:
        latent: ``[P, ...]`` before the step.
        after: ``[P, K, ...]`` candidates for the latent after it.
        log_probs: ``[P, K]`` their log-densities, nats per latent element.
        timestep: What the network was told.
        level: Noise level before the step.
        level_next: After it.
        reward: ``[P, K]`` on the CPU.
        outputs: The ``P K`` pictures that were judged, prompt by prompt.
    """

    latent: Tensor
    after: Tensor
    log_probs: Tensor
    timestep: float
    level: float
    level_next: float
    reward: Tensor
    outputs: Sequence[Output]


@torch.no_grad()
def forks(
    family: Family,
    model: nn.Module,
    prompts: Conditioning,
    *,
    settings: Denoising,
    candidates: int,
    first_step: int,
    judge: Judge,
    generators: Sequence[torch.Generator],
) -> list[Fork]:
    """The forked steps of one walk a prompt.

    From step ``first_step`` on every step that has a density is taken ``candidates`` times. What a
    candidate will become is judged: the clean latent that the network predicts from it at the next
    timestep, or the candidate itself after the last step. The walk goes on from a candidate drawn
    at random, good or bad, so that later steps start where the policy itself would be.

    Args:
        family: The pipeline.
        model: Its network.
        prompts: ``[P, ...]`` by name.
        settings: How pictures are drawn.
        candidates: K.
        first_step: Steps before it are taken once and not judged.
        judge: See `Judge`.
        generators: One per prompt.
    """
    device = next(model.parameters()).device
    schedule = family.process.schedule(settings.steps)
    count, shape = len(generators), family.latents.shape

    def noise(rows: int) -> Tensor:
        drawn = [torch.randn((rows, *shape), generator=g) for g in generators]
        return torch.stack(drawn).to(device)

    def ask(latent: Tensor, step: int) -> Tensor:
        prompt_of = torch.arange(count).repeat_interleave(len(latent) // count)
        time = schedule.timestep[step].to(device).expand(len(latent))
        asked = Asked(prompts=prompts, prompt_of=prompt_of)
        return guided(family, model, latent, time, asked, settings=settings)

    found: list[Fork] = []
    latent = noise(1).flatten(0, 1)
    answer = ask(latent, 0)
    for step in range(settings.steps):
        level, after = (
            v[step].to(device).expand(count) for v in (schedule.level, schedule.level_next)
        )
        mean, std = family.process.move(latent, answer, level, after, settings.amount)
        random, last = bool(std[0] >= MIN_STD), step + 1 == settings.steps
        if step < first_step or not random:
            latent = mean + wide(std, mean) * noise(1).flatten(0, 1) if random else mean
            answer = answer if last else ask(latent, step + 1)
            continue
        each = mean.repeat_interleave(candidates, 0)
        spread = std.repeat_interleave(candidates)
        drawn = each + wide(spread, each) * noise(candidates).flatten(0, 1)
        answers = drawn if last else ask(drawn, step + 1)
        told = 0.0 if last else float(schedule.timestep[step + 1])
        clean = drawn
        if not last:
            clean = family.process.clean(drawn, answers, after.repeat_interleave(candidates))
        outputs = pictures.decode(family, clean, rows_per_forward=settings.rows_per_forward)
        found.append(
            Fork(
                latent=latent,
                after=drawn.unflatten(0, (count, candidates)),
                log_probs=density(drawn, each, spread).view(count, candidates),
                timestep=float(schedule.timestep[step]),
                level=float(schedule.level[step]),
                level_next=float(schedule.level_next[step]),
                reward=judge(outputs, told).view(count, candidates),
                outputs=outputs,
            )
        )
        chosen = [int(torch.randint(candidates, (1,), generator=g)) for g in generators]
        kept = torch.tensor(chosen, device=device) + candidates * torch.arange(count, device=device)
        latent, answer = drawn[kept], answers[kept]
    return found
