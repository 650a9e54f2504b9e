"""Pictures to latents and back, through a pipeline's VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.diffusion.families import Family
from mmalign.fingerprints import content_key
from mmalign.types import Output

LatentDraw = Literal["mean", "sample"]


def checked(output: Output, row: int, *, size: tuple[int, int], resize: bool) -> Image.Image:
    """A recorded output as an RGB picture of the model's size.

    Raises:
        ValueError: It is no picture, or it has other channels or another size than the model's
            and ``resize`` is off.
    """
    if not isinstance(output, Image.Image):
        raise ValueError(
            f"row {row}: this model answers in pictures, and the recorded output is a "
            f"{type(output).__name__}"
        )
    if resize:
        return output.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
    if output.mode != "RGB":
        raise ValueError(
            f"row {row}: the picture has the channels {output.mode}, not RGB; convert it or set "
            "resize=true"
        )
    if output.size != size[::-1]:
        raise ValueError(
            f"row {row}: the picture is {output.size[0]} x {output.size[1]} pixels and the model "
            f"draws {size[1]} x {size[0]}; prepare the data at that size or set resize=true"
        )
    return output


@torch.no_grad()
def encode(
    family: Family,
    pictures: Sequence[Image.Image],
    *,
    noise: Tensor | None,
    rows_per_forward: int,
) -> Tensor:
    """Pictures to scaled latents ``[B, ...]`` float32.

    A picture's id is a hash of its pixels as they are given here, so after checks and resizing. The
    VAE sees each distinct picture once; what is remembered is mean and standard deviation of its
    posterior, so a draw from it is as if nothing had been remembered.

    Args:
        family: Holds the VAE.
        pictures: RGB, of the model's size.
        noise: ``[B, ...]`` for a draw from the VAE's posterior; None for its mean.
        rows_per_forward: Pictures encoded at a time.
    """
    latents = family.latents
    pixels = [torch.from_numpy(np.array(picture)) for picture in pictures]

    def answer(missing: list[int]) -> dict[str, Tensor]:
        means, stds = [], []
        for part in torch.stack([pixels[i] for i in missing]).split(rows_per_forward):
            scaled = part.permute(0, 3, 1, 2).float() / 127.5 - 1.0
            mean, std = latents.read(scaled)
            means.append(mean)
            stds.append(std)
        return {"mean": torch.cat(means), "std": torch.cat(stds)}

    found = latents.posteriors([content_key(value) for value in pixels], answer)
    latent = found["mean"]
    if noise is not None:
        latent = latent + found["std"] * noise.to(latent.device)
    return latents.to_latents(latent)


@torch.no_grad()
def decode(family: Family, latents: Tensor, *, rows_per_forward: int) -> list[Output]:
    """Scaled latents ``[B, ...]`` to PIL pictures, as the pipeline itself does it."""
    family.latents.posteriors.settle(needed=True)
    images: list[Output] = []
    for part in latents.split(rows_per_forward):
        decoded = family.latents.draw(part)
        images += family.pipe.image_processor.postprocess(decoded, output_type="pil")
    return images
