"""A walk from noise that forks: several candidates of a step from one latent, each judged (SPO)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmalign.diffusion import pictures
from mmalign.diffusion.moves import wide
from mmalign.diffusion.processes import Schedule
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Forking:
    """Walks that fork, one a prompt.

    Attributes:
        family: The pipeline.
        model: Its network.
        prompts: ``[P, ...]`` by name.
        settings: How pictures are drawn.
        candidates: K.
        first_step: Steps before it are taken once and not judged.
        judge: See `Judge`.
        generators: One per prompt.
    """

    family: Family
    model: nn.Module
    prompts: Conditioning
    settings: Denoising
    candidates: int
    first_step: int
    judge: Judge
    generators: Sequence[torch.Generator]

    @torch.no_grad()
    def forks(self) -> list[Fork]:
        """The forked steps.

        From step ``first_step`` on every step that has a density is taken K times. What a candidate
        will become is judged: the clean latent that the network predicts from it at the next
        timestep, or the candidate itself after the last step. The walk goes on from a candidate
        drawn at random, good or bad, so that later steps start where the policy itself would be.
        """
        process, count = self.family.process, len(self.generators)
        schedule, found = process.schedule(self.settings.steps), list[Fork]()
        latent = self._noise(1)
        answer = self._ask(latent, schedule, 0)
        for step in range(self.settings.steps):
            level, after = (
                v[step].to(latent.device).expand(count)
                for v in (schedule.level, schedule.level_next)
            )
            mean, std = process.move(latent, answer, level, after, self.settings.amount)
            random = bool(std[0] >= self.settings.min_std)
            if step < self.first_step or not random:
                if random:
                    latent = mean + wide(std, mean) * self._noise(1)
                else:
                    latent, _ = process.move(latent, answer, level, after, 0.0)
                answer = self._ask(latent, schedule, step + 1)
                continue
            each = mean.repeat_interleave(self.candidates, 0)
            spread = std.repeat_interleave(self.candidates)
            drawn = each + wide(spread, each) * self._noise(self.candidates)
            answers = self._ask(drawn, schedule, step + 1)
            log_probs = density(drawn, each, spread)
            found.append(self._judged(latent, drawn, answers, log_probs, schedule, step))
            kept = self._one_each(drawn.device)
            latent, answer = drawn[kept], answers[kept]
        return found

    def _noise(self, rows: int) -> Tensor:
        """``[P rows, ...]``, each prompt's from its own generator."""
        shape = (rows, *self.family.latents.shape)
        device = next(self.model.parameters()).device
        return torch.cat([torch.randn(shape, generator=g) for g in self.generators]).to(device)

    def _ask(self, latent: Tensor, schedule: Schedule, step: int) -> Tensor:
        """The network's prediction before a step; nobody reads the one behind the last."""
        if step == self.settings.steps:
            return torch.zeros_like(latent)
        rows = len(latent) // len(self.generators)
        prompt_of = torch.arange(len(self.generators)).repeat_interleave(rows)
        time = schedule.timestep[step].to(latent.device).expand(len(latent))
        asked = Asked(prompts=self.prompts, prompt_of=prompt_of)
        return guided(self.family, self.model, latent, time, asked, settings=self.settings)

    def _judged(
        self,
        latent: Tensor,
        drawn: Tensor,
        answers: Tensor,
        log_probs: Tensor,
        schedule: Schedule,
        step: int,
    ) -> Fork:
        last, shape = step + 1 == self.settings.steps, (len(self.generators), self.candidates)
        clean, told = drawn, 0.0
        if not last:
            told = float(schedule.timestep[step + 1])
            level = schedule.level_next[step].to(drawn.device).expand(len(drawn))
            clean = self.family.process.clean(drawn, answers, level)
        rows = self.settings.rows_per_forward
        outputs = pictures.decode(self.family, clean, rows_per_forward=rows)
        return Fork(
            latent=latent,
            after=drawn.unflatten(0, shape),
            log_probs=log_probs.view(shape),
            timestep=float(schedule.timestep[step]),
            level=float(schedule.level[step]),
            level_next=float(schedule.level_next[step]),
            reward=self.judge(outputs, told).view(shape),
            outputs=outputs,
        )

    def _one_each(self, device: torch.device) -> Tensor:
        """``[P]`` the number of a random candidate of each prompt among all ``P K``."""
        count = self.candidates
        chosen = [int(torch.randint(count, (1,), generator=g)) for g in self.generators]
        return torch.tensor(chosen, device=device) + count * torch.arange(len(chosen)).to(device)
