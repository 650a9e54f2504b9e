"""What the adapters need to know about a family of pipelines, and which families there are.

A family is one small file: how prompts are embedded, how its network is called, how pictures become
latents and back. Everything else (moves, bounds, guidance, trajectories) is shared.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmalign.diffusion.processes import Process

Conditioning = Mapping[str, Tensor]
"""What the network reads of a prompt, by name; the first axis is prompts or rows."""

# Class of a diffusers pipeline -> our family.
FAMILIES = {
    "StableDiffusionPipeline": "mmalign.diffusion.stable_diffusion:StableDiffusion",
    "StableDiffusion3Pipeline": "mmalign.diffusion.stable_diffusion_3:StableDiffusion3",
}
CACHED_PROMPTS = 512


class Family(Protocol):
    """A loaded pipeline, seen by an adapter. Everything but the network is frozen.

    Attributes:
        pipe: The diffusers pipeline.
        network_name: The pipeline's component that decides: "unet" or "transformer".
        process: Its noise process.
        latent_shape: (C, H, W) of a picture's latent.
        size: Height and width of a picture in pixels.
        text_size: Width of the states a prompt is embedded into.
    """

    pipe: Any
    network_name: str
    process: Process
    latent_shape: tuple[int, int, int]
    size: tuple[int, int]
    text_size: int

    def embed(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Prompts as the network reads them; ``states`` ``[P, L, text_size]`` is among them."""
        ...

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


class PromptCache:
    """Embeddings of the prompts seen last: text encoders are frozen, so each text is read once.

    Args:
        embed: Texts to tensors whose first axis is the text.
        limit: How many prompts are kept.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], dict[str, Tensor]],
        *,
        limit: int = CACHED_PROMPTS,
    ) -> None:
        self.embed = embed
        self.limit = limit
        self.known: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The embeddings of ``texts``, row by row."""
        missing = list(dict.fromkeys(text for text in texts if text not in self.known))
        if missing:
            read = self.embed(missing)
            for i, text in enumerate(missing):
                self.known[text] = {name: value[i] for name, value in read.items()}
        for text in texts:
            self.known.move_to_end(text)
        names = self.known[texts[0]].keys()
        found = {name: torch.stack([self.known[t][name] for t in texts]) for name in names}
        while len(self.known) > self.limit:
            self.known.popitem(last=False)
        return found


def check_length(tokenizer: Any, texts: Sequence[str], *, limit: int, encoder: str) -> None:
    """Refuse prompts that a text encoder would read only in part.

    Raises:
        ValueError: A prompt has more tokens than ``limit``, special tokens included.
    """
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids, strict=True):
        if len(ids) > limit:
            raise ValueError(
                f"a prompt of {len(ids)} tokens is too long for {encoder}, which reads {limit}; "
                f"shorten it or filter the data: {text[:80]!r}"
            )


def place(pipe: Any, device: torch.device) -> None:
    """Bring the frozen parts of a pipeline to the device of its network."""
    for part in pipe.components.values():
        if isinstance(part, nn.Module) and next(part.parameters()).device != device:
            part.to(device)


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
