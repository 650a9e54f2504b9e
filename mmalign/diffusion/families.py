"""A pipeline in parts, and which pipelines there are.

What differs between pipelines is declared, part by part, in one small file each: how prompts are
embedded, how the network is called, what the VAE's latents look like, how noise is taken away and
how a guidance scale acts. Everything else (moves, bounds, trajectories, saving) is shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn

from mmalign.diffusion.frozen import Texts
from mmalign.diffusion.guidance import ClassifierFree, Guidance
from mmalign.diffusion.latents import Latents, settings_of
from mmalign.diffusion.options import Options
from mmalign.diffusion.processes import Process

Conditioning = Mapping[str, Tensor]
"""What the network reads of a prompt, by name; the first axis is prompts or rows."""

# Class of a diffusers pipeline -> what takes it apart, in `mmalign.diffusion.pipelines`.
FAMILIES = {
    "StableDiffusionPipeline": "stable_diffusion:stable_diffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:stable_diffusion_xl",
    "StableDiffusion3Pipeline": "stable_diffusion_3:stable_diffusion_3",
    "PixArtSigmaPipeline": "pixart_sigma:pixart_sigma",
    "SanaPipeline": "sana:sana",
    "FluxPipeline": "flux:flux",
    "FluxKontextPipeline": "flux:flux",
    "QwenImagePipeline": "qwen_image:qwen_image",
    "WanPipeline": "wan:wan",
    "LTXPipeline": "ltx:ltx",
}

# Attention and feed-forward layers of UNets and transformers; embeddings and norms stay untouched.
LORA_TARGETS = (
    r".*(attn|attn1|attn2)\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|.*(ff|ff_context)\.net\.(0\.proj|2)"
)


class Predict(Protocol):
    """How a network is called."""

    def __call__(
        self, model: nn.Module, latent: Tensor, timestep: Tensor, given: Conditioning, /
    ) -> Tensor:
        """The network's output ``[B, *shape]`` at timesteps ``[B]``.

        Args:
            model: The network, or what stands in its place.
            latent: ``[B, *shape]`` in the network's precision, or of another height and width
                where there are buckets: what depends on the size is read off it.
            timestep: ``[B]`` as the process counts.
            given: Conditions by name, ``[B, ...]``.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A loaded pipeline, taken apart. Everything but the network is frozen.

    Attributes:
        pipe: The diffusers pipeline.
        network_name: The pipeline's component that decides: "unet" or "transformer".
        process: Its noise process.
        latents: Its VAE.
        embed: Prompts as the network reads them; ``states`` ``[P, L, text_size]`` is among them,
            and ``mask`` ``[P, L]`` where not all of them are read.
        text_size: Width of the states.
        predict: How the network is called.
        guidance: How a guidance scale acts.
        edits: Whether a prompt comes with one picture, which the network reads as the condition
            "picture" ``[P, *shape]``, a latent.
        lora_targets: What "all-linear" means for a LoRA: a regular expression on module names.
        settings: What else predictions depend on, in words.
    """

    pipe: Any = field(repr=False)
    network_name: str = "transformer"
    process: Process
    latents: Latents
    embed: Texts = field(repr=False)
    text_size: int
    predict: Predict = field(repr=False)
    guidance: Guidance = field(default_factory=ClassifierFree)
    edits: bool = False
    lora_targets: str = LORA_TARGETS
    settings: str = ""

    def describe(self) -> str:
        """Everything but weights that predictions and moves depend on."""
        scheduler = settings_of(self.pipe.scheduler)
        parts = f"{scheduler}, {self.process}, {self.latents.shape}, {self.settings}"
        return f"{type(self.pipe).__name__}({parts})"


class Build(Protocol):
    """What a family's file offers."""

    def __call__(self, pipe: Any, options: Options, /) -> Family:
        """Take a loaded pipeline apart.

        Raises:
            ValueError: The options do not fit it.
        """
        ...


def family_of(class_name: str) -> Build:
    """What takes pipelines of a class apart.

    Raises:
        ValueError: The pipeline is of no family we know.
    """
    if class_name not in FAMILIES:
        raise ValueError(
            f"pipelines of class {class_name} are not supported yet; supported are "
            f"{', '.join(FAMILIES)}"
        )
    module, _, name = FAMILIES[class_name].partition(":")
    found: Build = getattr(import_module(f"mmalign.diffusion.pipelines.{module}"), name)
    return found
