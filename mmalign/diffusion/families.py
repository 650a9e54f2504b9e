"""What the adapters need to know about a family of pipelines, and which families there are.

A family is one small file: how prompts are embedded, how its network is called, how pictures become
latents and back. Everything else (moves, bounds, guidance, trajectories) is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

from mmalign.diffusion.frozen import Frozen, Texts
from mmalign.diffusion.processes import Process

Conditioning = Mapping[str, Tensor]
"""What the network reads of a prompt, by name; the first axis is prompts or rows."""

# Class of a diffusers pipeline -> our family.
FAMILIES = {
    "StableDiffusionPipeline": "mmalign.diffusion.stable_diffusion:StableDiffusion",
    "StableDiffusion3Pipeline": "mmalign.diffusion.stable_diffusion_3:StableDiffusion3",
}


class Family(Protocol):
    """A loaded pipeline, seen by an adapter. Everything but the network is frozen.

    Attributes:
        pipe: The diffusers pipeline.
        network_name: The pipeline's component that decides: "unet" or "transformer".
        process: Its noise process.
        latent_shape: (C, H, W) of a picture's latent.
        size: Height and width of a picture in pixels.
        text_size: Width of the states a prompt is embedded into.
        embed: Prompts as the network reads them; ``states`` ``[P, L, text_size]`` is among them.
        posteriors: Pictures as the VAE sees them.
    """

    pipe: Any
    network_name: str
    process: Process
    latent_shape: tuple[int, int, int]
    size: tuple[int, int]
    text_size: int
    embed: Texts
    posteriors: Frozen

    def predict(
        self, model: nn.Module, latent: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The network's output ``[B, C, H, W]`` at timesteps ``[B]``."""
        ...

    def to_latents(self, posterior: Tensor) -> Tensor:
        """What the VAE says, scaled as the network wants it."""
        ...

    def from_latents(self, latent: Tensor) -> Tensor:
        """The inverse of `to_latents`."""
        ...

    def describe(self) -> str:
        """Everything but weights that predictions and moves depend on."""
        ...

    def save_lora(self, directory: str, tensors: Mapping[str, Tensor], config: Any) -> None:
        """Write a LoRA as `pipe.load_lora_weights` reads it."""
        ...


def family_of(class_name: str) -> type[Any]:
    """The family of a pipeline class.

    Raises:
        ValueError: The pipeline is of no family we know.
    """
    if class_name not in FAMILIES:
        raise ValueError(
            f"pipelines of class {class_name} are not supported yet; supported are "
            f"{', '.join(FAMILIES)}"
        )
    module, _, name = FAMILIES[class_name].partition(":")
    found: type[Any] = getattr(import_module(module), name)
    return found


def settings_of(part: Any) -> dict[str, Any]:
    """The config of a part, without where it was loaded from and who wrote it."""
    return {k: v for k, v in dict(part.config).items() if not k.startswith("_")}


def posteriors_of(pipe: Any, *, network: str, cache: str | None) -> Frozen:
    """The VAE of a pipeline, with its answers."""
    return Frozen(
        pipe,
        network=network,
        parts=("vae",),
        settings=f"mean and std of the posterior, {settings_of(pipe.vae)}",
        folder=cache,
    )


def latent_side(size: int | None, *, sample_size: int, factor: int, multiple: int) -> int:
    """Latent height and width for a picture's side in pixels; None for the network's own.

    Raises:
        ValueError: The side does not divide into latents as the network needs it.
    """
    side = sample_size * factor if size is None else size
    if side <= 0 or side % (factor * multiple):
        raise ValueError(
            f"size={side} pixels does not fit this model; it must be a multiple of "
            f"{factor * multiple}"
        )
    return side // factor
