"""The evidence bound as a policy: a step is one (timestep, noise) draw (Diffusion-DPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mmalign.blame import Refused
from mmalign.diffusion import buckets, pictures, saving
from mmalign.diffusion.draws import Draw, DrawSettings, draw, without_dropped
from mmalign.diffusion.families import Family
from mmalign.diffusion.pictures import Drawn, LatentDraw
from mmalign.diffusion.processes import Diffusion
from mmalign.diffusion.sampling import (
    Asked,
    Denoising,
    conditions,
    feature_size,
    features,
    guided,
    walk,
)
from mmalign.diffusion.weights import TimestepWeight, min_snr
from mmalign.prompts import frames_of
from mmalign.protocols import Likelihood, Want
from mmalign.types import Output, Prompt, Scores, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class ElboSettings:
    """How the bound is estimated.

    Attributes:
        denoising: How pictures are sampled.
        drawing: What is drawn for each prompt.
        timestep_weight: What the error at a level counts: "constant", or "min_snr", which takes
            weight from levels with little noise (a diffusion's alone).
        snr_gamma: Of "min_snr": the ratio of signal to noise from which on it does so.
        latent: The VAE's posterior mean, or a draw from it.
        drawn: What is scored of a picture that the policy drew: the VAE's latent of it, as of a
            recorded one, or the latent that its last move arrived at.
        buckets: Heights and widths, in pixels, that recorded pictures may have; empty for the
            model's own size alone.
    """

    denoising: Denoising
    drawing: DrawSettings = field(default_factory=DrawSettings)
    timestep_weight: TimestepWeight = "constant"
    snr_gamma: float = 5.0
    latent: LatentDraw = "mean"
    drawn: Drawn = "encoded"
    buckets: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.snr_gamma <= 0:
            raise ValueError(f"snr_gamma={self.snr_gamma} must be positive")


class ElboAdapter:
    """Scores pictures by how well they are denoised; see `mmalign.protocols.Adapter`.

    ``log_probs[b, t]`` is minus one half of the mean squared error over the latent, times the
    weight of its level, divided by the number of draws. With one draw and constant weights, DPO on
    it is the published Diffusion-DPO loss at the same beta.

    ``stepwise`` holds ``latent`` and ``noise`` ``[B, T, ...]``, ``timestep`` and ``level``
    ``[B, T]``. Noise and timestep are drawn once per prompt: its rows, hence both sides of a pair,
    and the reference see the same. Where prompts are dropped, ``dropped`` ``[B, T]`` says which,
    and what is stored of them is the empty prompt. Under buckets, ``extent`` ``[B, T, 2]`` is
    height and width of the part of the latent that the picture fills.

    Args:
        family: The pipeline.
        settings: Draws and sampling.

    Raises:
        ValueError: Settings do not fit the pipeline.
    """

    likelihood: Likelihood = "bound"

    def __init__(self, *, family: Family, settings: ElboSettings) -> None:
        self.family = family
        self.settings = settings
        # A bound is of the conditional network, however pictures are sampled.
        scale = family.guidance.of_bound(settings.denoising.guidance_scale)
        self.unguided = replace(settings.denoising, guidance_scale=scale)
        self.feature_size = feature_size(family)
        if settings.timestep_weight == "min_snr" and not isinstance(family.process, Diffusion):
            raise ValueError("timestep_weight=min_snr is of diffusions; leave it out for a flow")
        latents = family.latents
        buckets.check_buckets(settings.buckets, latents.unit)
        self.sizes = settings.buckets or (latents.size,)
        extents = [latents.extent(size) for size in (*settings.buckets, latents.size)]
        # Where latents are stored, whatever part of it a picture fills.
        self.room = tuple(max(sides) for sides in zip(*extents, strict=True))

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded pictures as latents with their draws.

        Raises:
            ValueError: A picture or a prompt does not fit the model, or rows that share their
                noise are of different buckets.
        """
        flat = [output for group in outputs for output in group]
        images = [
            pictures.checked(output, row, self.family.latents, sizes=self.sizes)
            for row, output in enumerate(flat)
        ]
        seeds = [g.initial_seed() for g, of in zip(generators, outputs, strict=True) for _ in of]
        _require_one_bucket([frames[0] for frames in images], seeds)
        draws = [self._draw(generator) for generator in generators]
        counts = [len(group) for group in outputs]
        clean, extents = self._encoded(images, self._posterior_noise(generators, counts))
        return self._trajectory(prompts, clean, extents, torch.tensor(counts), draws, flat)

    def _posterior_noise(
        self, generators: Sequence[torch.Generator], counts: Sequence[int]
    ) -> Tensor | None:
        """``[B, *shape]`` where latents are draws from the VAE's posterior."""
        if self.settings.latent == "mean":
            return None
        shape = self._shape()
        return torch.cat(
            [
                torch.randn((count, *shape), generator=generator)
                for count, generator in zip(counts, generators, strict=True)
            ]
        )

    def _encoded(
        self, images: Sequence[Sequence[Image.Image]], noise: Tensor | None, *, keep: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Latents ``[B, *shape]`` of outputs of any bucket, and what they fill: ``[B, 2]``.

        An output is its frames, one where it is a picture; ``keep``: see `pictures.encode`.
        """
        latents = self.family.latents
        sizes = [latents.extent((frames[0].height, frames[0].width)) for frames in images]
        extents = torch.tensor(sizes)
        clean: list[Tensor] = [torch.empty(0)] * len(images)
        for extent, rows in buckets.by_extent(extents):
            found = pictures.encode(
                latents,
                [images[row] for row in rows.tolist()],
                noise=None if noise is None else buckets.cropped(noise[rows], extent),
                keep=keep,
            )
            for row, latent in zip(rows.tolist(), found, strict=True):
                clean[row] = buckets.padded(latent, self.room)
        return torch.stack(clean), extents

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` pictures of each prompt, scored as `ElboSettings.drawn` says."""
        settings = self.settings.denoising
        embedded = conditions(self.family, prompts)
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
        counts = [group_size] * len(prompts)
        if self.settings.drawn == "encoded":
            noise = self._posterior_noise(generators, counts)
            clean, extents = self._encoded([frames_of(o) for o in outputs], noise, keep=False)
        else:
            extents = torch.tensor([clean.shape[-2:]]).expand(len(clean), 2)
            clean = buckets.padded(clean, self.room)
        return self._trajectory(prompts, clean, extents, torch.tensor(counts), draws, outputs)

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
        if "extent" not in at:
            found = self._measured(model, at, asked, want)
        else:
            found = {"error": torch.zeros(len(row_of), device=device)}
            if "features" in want:
                found["features"] = torch.zeros(len(row_of), self.feature_size, device=device)
            for extent, rows in buckets.by_extent(at["extent"]):
                if 0 in extent:  # steps that only pad a row, and are masked
                    continue
                part = {k: v[rows] for k, v in at.items()}
                part |= {k: buckets.cropped(part[k], extent) for k in ("latent", "noise")}
                of = replace(asked, prompt_of=asked.prompt_of[rows])
                for name, value in self._measured(model, part, of, want).items():
                    found[name] = found[name].index_put((rows,), value)
        log_probs = -0.5 / self.settings.drawing.draws * found["error"].view(shape)
        mask = trajectory.mask.to(device)
        return Scores(
            log_probs=torch.where(mask, log_probs, torch.zeros_like(log_probs)),
            features=found["features"].view(*shape, -1) if "features" in want else None,
        )

    def _measured(
        self, model: nn.Module, at: dict[str, Tensor], asked: Asked, want: Want
    ) -> dict[str, Tensor]:
        """Weighted mean squared errors ``[M]`` of draws of one size, and features if wanted."""
        process = self.family.process
        noisy = process.noised(at["latent"], at["noise"], at["level"])
        answer = guided(self.family, model, noisy, at["timestep"], asked, settings=self.unguided)
        target = process.target(at["latent"], at["noise"], at["level"])
        error = (target - answer).square().flatten(1).mean(1)
        if self.settings.timestep_weight == "min_snr":
            assert isinstance(process, Diffusion)
            kind = process.prediction_type
            error = error * min_snr(
                at["level"], gamma=self.settings.snr_gamma, prediction_type=kind
            )
        if "features" not in want:
            return {"error": error}
        return {"error": error, "features": features(noisy, at["timestep"], asked)}

    def prompt_lengths(self, trajectory: Trajectory) -> Tensor:
        """0: a prompt conditions every step and takes no position of its own."""
        return torch.zeros(trajectory.num_prompts, dtype=torch.int64)

    def describe(self) -> str:
        """What scores depend on: how draws are made is in the timesteps and the noise of a row."""
        settings = self.settings
        weight = f"{settings.timestep_weight} {settings.snr_gamma}"
        draws = f"draws={settings.drawing.draws}"
        return f"ElboAdapter({self.family.describe()}, {draws}, weight={weight})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what diffusers loads."""
        saving.save(self.family, model, directory)

    def _shape(self) -> tuple[int, ...]:
        """Of a stored latent: with room for every bucket."""
        return (*self.family.latents.shape[:-2], *self.room)

    def _draw(self, generator: torch.Generator) -> Draw:
        """The draws of one prompt."""
        return draw(generator, self.settings.drawing, self._shape())

    def _trajectory(
        self,
        prompts: Sequence[Prompt],
        clean: Tensor,
        extents: Tensor,
        counts: Tensor,
        draws: Sequence[Draw],
        outputs: Sequence[Output],
    ) -> Trajectory:
        device, steps = clean.device, self.settings.drawing.draws
        prompt_of = torch.arange(len(prompts)).repeat_interleave(counts).to(device)
        quantile = torch.stack([d.quantile for d in draws]).to(device)
        noise = torch.stack([d.noise for d in draws]).to(device)
        dropped = [d.dropped for d in draws]
        timestep, level = self.family.process.at(quantile)
        stepwise = {
            "latent": clean[:, None].expand(-1, steps, *clean.shape[1:]),
            "noise": noise[prompt_of],
            "timestep": timestep[prompt_of],
            "level": level[prompt_of],
        }
        if self.settings.buckets:
            stepwise["extent"] = extents.to(device)[:, None].expand(-1, steps, -1)
        if self.settings.drawing.prompt_dropout > 0:
            here = torch.tensor(dropped, device=device)[prompt_of]
            stepwise["dropped"] = here[:, None].expand(-1, steps)
        given = conditions(self.family, prompts)
        return Trajectory(
            mask=torch.ones(len(clean), steps, dtype=torch.bool, device=device),
            prompt_of=prompt_of,
            static=without_dropped(given, dropped, self.family.embed),
            stepwise=stepwise,
            outputs=list(outputs),
            separable=True,
        )


def _require_one_bucket(images: Sequence[Image.Image], seeds: Sequence[int]) -> None:
    """Refuse rows that are to share their noise (the seed says so) and differ in size.

    Raises:
        Refused: Naming the row.
    """
    first: dict[int, int] = {}
    for row, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        other = images[first.setdefault(seed, row)]
        if image.size != other.size:
            raise Refused(
                "row",
                row,
                f": the picture is {image.size[0]} x {image.size[1]} pixels and row {first[seed]}, "
                f"which it is compared with, {other.size[0]} x {other.size[1]}; the sides of a "
                "pair share their noise, so both must be of one bucket",
            )
