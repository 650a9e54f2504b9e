"""Pictures and clips to latents and back, through a pipeline's VAE.

A clip is a tuple of pictures, in the order of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.blame import Refused
from mmalign.diffusion.buckets import Size, covering, nearest
from mmalign.diffusion.families import Family
from mmalign.diffusion.latents import Latents
from mmalign.fingerprints import content_key
from mmalign.types import Output

LatentDraw = Literal["mean", "sample"]
Drawn = Literal["encoded", "own"]
Drawing = Image.Image | tuple[Image.Image, ...]
"""A picture or a clip."""


def checked(
    output: Output, row: int, latents: Latents, *, sizes: Sequence[Size]
) -> list[Image.Image]:
    """A recorded output as RGB pictures of a size that is asked for: a clip's frames, or one.

    Args:
        output: What is recorded.
        row: Its number.
        latents: What the model draws.
        sizes: Heights and widths that are welcome.

    Raises:
        Refused: It is no picture (no clip of the model's length), or `fitted` refuses it.
    """
    frames = output if isinstance(output, tuple) else (output,)
    clip = isinstance(output, tuple)
    if isinstance(output, str) or clip == (latents.frames is None):
        kind = "pictures" if latents.frames is None else "clips (several pictures)"
        raise Refused(
            "row",
            row,
            f": this model answers in {kind}, and the recorded output is a "
            f"{'clip' if clip else type(output).__name__}",
        )
    if latents.frames is not None and len(frames) != latents.frames:
        raise Refused(
            "row",
            row,
            f": the clip has {len(frames)} frames and the model draws {latents.frames}; prepare "
            "the data at that length or set num_frames",
        )
    return [
        fitted(frame, ("row", row), latents, sizes=sizes)
        for frame in frames
        if not isinstance(frame, str)
    ]


def fitted(
    picture: Image.Image,
    of: tuple[Literal["prompt", "row"], int],
    latents: Latents,
    *,
    sizes: Sequence[Size],
) -> Image.Image:
    """A picture as RGB of a welcome size.

    With ``resize`` another picture is scaled until it covers the size of the nearest shape, and cut
    at its edges.

    Raises:
        Refused: It has other channels or another size and ``resize`` is off.
    """
    if latents.resize:
        return covering(picture, nearest((picture.height, picture.width), sizes))
    if picture.mode != "RGB":
        raise Refused(
            *of,
            f": the picture has the channels {picture.mode}, not RGB; convert it or set "
            "resize=true",
        )
    if (picture.height, picture.width) not in sizes:
        welcome = ", ".join(f"{width} x {height}" for height, width in sizes)
        raise Refused(
            *of,
            f": the picture is {picture.size[0]} x {picture.size[1]} pixels and the model draws "
            f"{welcome}; prepare the data at that size or set resize=true",
        )
    return picture


@torch.no_grad()
def encode(
    latents: Latents,
    outputs: Sequence[Sequence[Image.Image]],
    *,
    noise: Tensor | None,
    keep: bool = True,
) -> Tensor:
    """Pictures or clips to scaled latents ``[B, ...]`` float32.

    The id of an output is a hash of its pixels as they are given here, so after checks and
    resizing. The VAE sees each distinct one once; what is remembered is mean and standard deviation
    of its posterior, so a draw from it is as if nothing had been remembered.

    Args:
        latents: Holds the VAE.
        outputs: The frames of each, RGB, all of one size; one where it is a picture.
        noise: ``[B, ...]`` for a draw from the VAE's posterior; None for its mean.
        keep: Whether the answers are remembered, in memory or on disk.

    Raises:
        ValueError: The VAE says of an output what is no number.
    """
    pixels = [torch.from_numpy(np.stack([np.array(f) for f in frames])) for frames in outputs]
    if latents.frames is None:
        pixels = [value[0] for value in pixels]

    def answer(position: int) -> dict[str, Tensor]:
        mean, std = latents.read(pixels[position][None].movedim(-1, 1).float() / 127.5 - 1.0)
        return {"mean": mean, "std": std}

    found = latents.posteriors([content_key(value) for value in pixels], answer, keep=keep)
    latent = found["mean"]
    bad = (~latent.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"the VAE's latents of {len(bad)} of {len(outputs)} pictures are not finite, first of "
            f"picture {bad[0]}; it overflows: use dtype float32 or bfloat16"
        )
    if noise is not None:
        latent = latent + found["std"] * noise.to(latent.device)
    return latents.to_latents(latent)


@torch.no_grad()
def decode(family: Family, latents: Tensor, *, rows_per_forward: int) -> list[Drawing]:
    """Scaled latents ``[B, ...]`` to PIL pictures or clips, as the pipeline itself does it."""
    family.latents.posteriors.settle(needed=True)
    outputs: list[Drawing] = []
    for part in latents.split(rows_per_forward):
        pixels = family.latents.draw(part)
        if family.latents.frames is None:
            outputs += family.pipe.image_processor.postprocess(pixels, output_type="pil")
        else:
            clips = family.pipe.video_processor.postprocess_video(pixels, output_type="pil")
            outputs += [tuple(clip) for clip in clips]
    return outputs
