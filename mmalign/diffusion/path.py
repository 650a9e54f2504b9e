"""The denoising path as a policy: a step is a move between latents (DDPO, Flow-GRPO)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmalign.diffusion import pictures, saving
from mmalign.diffusion.families import Family
from mmalign.diffusion.moves import wide
from mmalign.diffusion.sampling import (
    Asked,
    Denoising,
    conditions,
    density,
    feature_size,
    features,
    guided,
    walk,
)
from mmalign.functional import gaussian_kl, gaussian_log_collision
from mmalign.protocols import AGAINST, Likelihood, Want
from mmalign.types import Output, Prompt, Scores, Trajectory

KNOWN: Want = AGAINST | {"log_collision", "features"}
LOUDEST = 0.9
"""A move with more of the gradient's variance than this leaves nothing for the others to say."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """How a path is scored.

    Attributes:
        denoising: How it is sampled, guidance included; ``amount`` must be positive.
        step_fraction: Share of the moves of a prompt that is scored, drawn anew for every prompt
            and the same for all its rows (DanceGRPO: 0.6); the others cost nothing in training.
    """

    denoising: Denoising
    step_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.denoising.amount == 0:
            raise ValueError(
                "a path without noise has no likelihood: set eta (diffusion) or noise_level (flow) "
                "above 0, or use likelihood: elbo"
            )
        if not 0 < self.step_fraction <= 1:
            raise ValueError(f"step_fraction={self.step_fraction} must lie in (0, 1]")


class PathAdapter:
    """Samples and scores denoising moves; see `mmalign.protocols.Adapter`.

    ``stepwise`` holds, per row and move: ``latent`` and ``next`` ``[B, T, ...]``, ``timestep``,
    ``level`` and ``level_next`` ``[B, T]``. Moves without noise are masked.

    Args:
        family: The pipeline.
        settings: Sampling, which is also what is scored.
    """

    likelihood: Likelihood = "exact"

    def __init__(self, *, family: Family, settings: PathSettings) -> None:
        self.family = family
        self.settings = settings
        self.feature_size = feature_size(family)
        note = one_loud_move(family, settings.denoising)
        if note is not None:
            logger.warning(note)

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded pictures have no recorded path.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a recorded picture does not say by which path it was drawn, so it has no path "
            "likelihood; use likelihood: elbo for recorded pictures"
        )

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` paths of each prompt, and the pictures they end in."""
        settings = self.settings.denoising
        static = conditions(self.family, prompts)
        prompt_of = torch.arange(len(prompts)).repeat_interleave(group_size)
        found = walk(
            self.family,
            model,
            static,
            settings=settings,
            group_size=group_size,
            generators=generators,
        )
        schedule = self.family.process.schedule(settings.steps)
        rows, device = len(prompt_of), found.latents.device
        latents = found.latents
        mask = self._mask(found.scored, generators)[prompt_of].to(device)
        return Trajectory(
            mask=mask,
            prompt_of=prompt_of.to(device),
            static=static,
            stepwise={
                "latent": latents[:, :-1],
                "next": latents[:, 1:],
                "timestep": schedule.timestep.to(device).repeat(rows, 1),
                "level": schedule.level.to(device).repeat(rows, 1),
                "level_next": schedule.level_next.to(device).repeat(rows, 1),
            },
            outputs=pictures.decode(
                self.family, latents[:, -1], rows_per_forward=settings.rows_per_forward
            ),
            separable=True,
            log_probs=torch.where(mask, found.log_probs, 0.0),
        )

    def scores(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        *,
        want: Want = frozenset(),
        against: nn.Module | None = None,
    ) -> Scores:
        """Log-density of every recorded move, nats per latent element.

        Raises:
            ValueError: Something is wanted that a Gaussian move does not have, or what compares
                with a reference without one.
        """
        if want - KNOWN:
            raise ValueError(f"a denoising path offers {sorted(KNOWN)}, not {sorted(want - KNOWN)}")
        if want & AGAINST and against is None:
            raise ValueError(f"{sorted(want & AGAINST)} needs the reference network")
        device = next(model.parameters()).device
        mask = trajectory.mask.to(device)
        # Only what is scored is computed: masked moves cost nothing and cannot make a NaN.
        row, step = mask.nonzero(as_tuple=True)
        if len(row) == 0:
            return self._unscored(model, mask, want)
        at = {k: v.to(device)[row, step] for k, v in trajectory.stepwise.items()}
        prompts = {k: v.to(device) for k, v in trajectory.static.items()}
        asked = Asked(prompts=prompts, prompt_of=trajectory.prompt_of.to(device)[row])
        prediction = self._prediction(model, at, asked)
        mean, std = self._move(prediction, at)
        found = {"log_probs": density(at["next"], mean, std)}
        if against is not None and want & AGAINST:
            with torch.no_grad():
                other = self._prediction(against, at, asked)
            found |= self._compared(prediction, other, at, want)
        if "log_collision" in want:
            found["log_collision"] = gaussian_log_collision(std)
        if "features" in want:
            found["features"] = features(at["latent"], at["timestep"], asked)
        return Scores(**{name: _scatter(value, mask, row, step) for name, value in found.items()})

    def prompt_lengths(self, trajectory: Trajectory) -> Tensor:
        """0: a prompt conditions every step and takes no position of its own."""
        return torch.zeros(trajectory.num_prompts, dtype=torch.int64)

    def describe(self) -> str:
        """The settings that scores depend on."""
        return f"PathAdapter({self.family.describe()}, {self.settings!r})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what diffusers loads."""
        saving.save(self.family, model, directory)

    def _unscored(self, model: nn.Module, mask: Tensor, want: Want) -> Scores:
        """The scores of a window without a scored move: 0, with a graph for the gradient of 0."""
        trained = [p for p in model.parameters() if p.requires_grad]
        nothing = torch.zeros(mask.shape, device=mask.device)
        if trained:
            nothing = nothing + 0.0 * trained[0].float().sum()
        wide = nothing.detach()[..., None].expand(*mask.shape, self.feature_size)
        return Scores(
            log_probs=nothing,
            kl=nothing if "kl" in want else None,
            kl_forward=nothing if "kl_forward" in want else None,
            reference=nothing.detach() if "kl_forward" in want else None,
            log_collision=nothing.detach() if "log_collision" in want else None,
            prediction_distance=nothing if "prediction_distance" in want else None,
            features=wide if "features" in want else None,
        )

    def _compared(
        self, prediction: Tensor, other: Tensor, at: dict[str, Tensor], want: Want
    ) -> dict[str, Tensor]:
        """What `AGAINST` names, of predictions of the policy and of the reference."""
        (mean, std), (reference, _) = self._move(prediction, at), self._move(other, at)
        divergence = gaussian_kl(mean, reference, wide(std, mean), latent_dims=mean.ndim - 1)
        # Of one deviation, so that both directions are the same.
        found = {"kl": divergence, "kl_forward": divergence}
        found["prediction_distance"] = (prediction - other).square().flatten(1).mean(1)
        found = {name: value for name, value in found.items() if name in want}
        if "kl_forward" in want:
            found["reference"] = density(at["next"], reference, std).detach()
        return found

    def _prediction(self, model: nn.Module, at: dict[str, Tensor], asked: Asked) -> Tensor:
        settings = self.settings.denoising
        return guided(self.family, model, at["latent"], at["timestep"], asked, settings=settings)

    def _move(self, prediction: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        amount = self.settings.denoising.amount
        return self.family.process.move(
            at["latent"], prediction, at["level"], at["level_next"], amount
        )

    def _mask(self, scored: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """``[P, T]``: the moves with a density, thinned to `step_fraction`."""
        if self.settings.step_fraction == 1:
            return scored
        mask = torch.zeros_like(scored)
        for row, generator in enumerate(generators):
            possible = scored[row].nonzero().squeeze(1)
            count = max(1, round(self.settings.step_fraction * len(possible)))
            mask[row, possible[torch.randperm(len(possible), generator=generator)[:count]]] = True
        return mask


def one_loud_move(family: Family, settings: Denoising) -> str | None:
    """What to do where a single move drowns the others; None where none does.

    A move of deviation ``std`` whose mean is ``c`` times the prediction gives the gradient of its
    log-density the variance ``(c / std)^2``. DDIM with eta 1 from a middling level straight to the
    last one (trailing timesteps) has a tiny deviation there and a large c.
    """
    schedule = family.process.schedule(settings.steps)
    one = torch.ones(len(schedule.level), 1)
    levels = (schedule.level, schedule.level_next, settings.amount)
    mean, std = family.process.move(one, one, *levels)
    without, _ = family.process.move(one, torch.zeros_like(one), *levels)
    scored = std >= settings.min_std
    loudness = torch.where(scored, ((mean - without).squeeze(1) / std).square(), 0.0)
    place = int(loudness.argmax())
    share = float(loudness[place] / loudness.sum())
    above = std[scored & (std > std[place])]
    if settings.window is not None or len(above) == 0 or share <= LOUDEST:
        return None
    between = float((std[place] * above.min()).sqrt())
    return (
        f"move {place + 1} of {settings.steps} has {100 * share:.0f} % of the variance of a path's "
        f"gradient, since its deviation is {float(std[place]):.2g}: policy gradients will hardly "
        f"train the other moves. Leave it out with min_std: {between:.1g}"
    )


def _scatter(value: Tensor, mask: Tensor, row: Tensor, step: Tensor) -> Tensor:
    """``[K, ...]`` values at (row, step) into ``[B, T, ...]``, 0 elsewhere."""
    empty = value.new_zeros(*mask.shape, *value.shape[1:])
    return empty.index_put((row, step), value)
