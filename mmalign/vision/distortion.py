"""Distorted pictures: the same picture with a part of what it shows taken away.

Pictures are distorted as the network sees them, after the processor has resized and normalised
them. A pixel set to a mean is then exactly that, which it would not stay if the picture were
resized afterwards, and "the mean" is the mean of normalised values, as in the published methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import ProcessorMixin

Kind = Literal["pixels", "blocks", "crop", "noise"]
GRID = "image_grid_thw"
"""The key of the patch grid, where pixels are rows of patches."""
SMALLEST_CROP = 0.01
ASPECTS = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """How a picture is distorted.

    Attributes:
        kind: "pixels" sets single pixels, and "blocks" whole squares, to the picture's mean value
            (one number for all channels); "crop" enlarges a small part to the whole picture;
            "noise" mixes in Gaussian noise of variance 1.
        share: Of the pixels or blocks that are set: OPA-DPO's released code takes 0.3. Of the
            area that a crop keeps at most, at least 0.01 being kept: mDPO's released code takes
            0.2. Of the variance that is noise.
        block: Side of a block in pixels; a rest at the edges stays.

    References:
        OPA-DPO, 2501.09695; mDPO, 2406.11839.
    """

    kind: Kind = "pixels"
    share: float = 0.3
    block: int = 14

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must lie between 0 and 1")
        if self.kind == "crop" and self.share < SMALLEST_CROP:
            raise ValueError(f"share={self.share} of a crop must be at least {SMALLEST_CROP}")
        if self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1 pixel")

    def __call__(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """``[C, H, W]`` normalised values to values of the same shape; the input is left alone."""
        return _KINDS[self.kind](self, picture, generator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """How a processor lays a picture out as rows of patches (Qwen2-VL and its kin).

    Attributes:
        size: Side of a patch in pixels.
        merge: Patches that stand together come in squares of so many by so many.
        frames: How often the picture is repeated along time within a patch.
    """

    size: int
    merge: int
    frames: int

    @staticmethod
    def of(processor: ProcessorMixin) -> Patches:
        """As the picture processor of a model says."""
        found = processor.image_processor
        return Patches(
            size=found.patch_size, merge=found.merge_size, frames=found.temporal_patch_size
        )

    def picture(self, rows: Tensor, grid: Tensor) -> Tensor:
        """``[h * w, C * frames * size * size]`` of one still picture, as ``[C, H, W]``."""
        _, height, width = grid.tolist()
        m, p = self.merge, self.size
        axes = rows.view(height // m, width // m, m, m, -1, self.frames, p, p)[..., 0, :, :]
        return axes.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, height * p, width * p)

    def rows(self, picture: Tensor) -> Tensor:
        """The inverse of `picture`."""
        m, p = self.merge, self.size
        channels, height, width = picture.shape
        axes = picture.view(channels, height // p // m, m, p, width // p // m, m, p)
        patches = axes.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        repeated = patches.expand(*patches.shape[:5], self.frames, p, p)
        return repeated.reshape((height // p) * (width // p), -1)


def distorted(
    per_image: Mapping[str, Tensor],
    distortion: Distortion,
    generator: torch.Generator,
    *,
    patches: Patches | None,
) -> dict[str, Tensor]:
    """What a processor made of the pictures of a prompt, each picture distorted.

    Args:
        per_image: Its ``pixel_values`` are ``[n, C, H, W]``, or ``[n, tiles, C, H, W]`` (tiles are
            distorted one by one), or rows of patches beside ``image_grid_thw``.
        distortion: What to do.
        generator: All draws, picture by picture.
        patches: The layout of rows of patches; None where pictures are not laid out so.

    Raises:
        ValueError: The pixels are laid out in another way.
    """
    pixels = per_image["pixel_values"]
    if patches is not None and pixels.dim() == 2:
        grids = per_image[GRID]
        if bool((grids[:, 0] != 1).any()):
            raise ValueError("a picture with several frames is a film, which is not distorted")
        parts = pixels.split(grids.prod(-1).tolist())
        changed = [
            patches.rows(distortion(patches.picture(part, grid), generator))
            for part, grid in zip(parts, grids, strict=True)
        ]
        return {**per_image, "pixel_values": torch.cat(changed)}
    if pixels.dim() not in (4, 5):
        raise ValueError(
            f"pixel_values of shape {list(pixels.shape)} are laid out in a way that is not known; "
            "distorted views work for pictures that are stacked, tiled, or rows of patches beside "
            "image_grid_thw"
        )
    flat = pixels.flatten(0, -4)
    changed = [distortion(picture, generator) for picture in flat]
    return {**per_image, "pixel_values": torch.stack(changed).view_as(pixels)}


def _pixels(settings: Distortion, picture: Tensor, generator: torch.Generator) -> Tensor:
    channels, height, width = picture.shape
    chosen = _chosen(height * width, settings.share, generator)
    found = picture.clone().view(channels, -1)
    found[:, chosen] = picture.mean()
    return found.view_as(picture)


def _blocks(settings: Distortion, picture: Tensor, generator: torch.Generator) -> Tensor:
    side = settings.block
    down, across = picture.shape[1] // side, picture.shape[2] // side
    if down * across == 0:
        raise ValueError(f"a block of {side} pixels does not fit a {list(picture.shape)} picture")
    found, mean = picture.clone(), picture.mean()
    for number in _chosen(down * across, settings.share, generator).tolist():
        top, left = number // across * side, number % across * side
        found[:, top : top + side, left : left + side] = mean
    return found


def _crop(settings: Distortion, picture: Tensor, generator: torch.Generator) -> Tensor:
    """Area and logarithm of the aspect ratio uniform; a side that does not fit is cut to fit."""
    _, height, width = picture.shape
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    area = height * width * (SMALLEST_CROP + (settings.share - SMALLEST_CROP) * draws[0])
    low, high = (math.log(aspect) for aspect in ASPECTS)
    aspect = math.exp(low + (high - low) * draws[1])
    across = min(max(round(math.sqrt(area * aspect)), 1), width)
    down = min(max(round(math.sqrt(area / aspect)), 1), height)
    top, left = int(draws[2] * (height - down + 1)), int(draws[3] * (width - across + 1))
    part = picture[:, top : top + down, left : left + across]
    return functional.interpolate(
        part[None], size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]


def _noise(settings: Distortion, picture: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(picture.shape, generator=generator, dtype=picture.dtype)
    return math.sqrt(1 - settings.share) * picture + math.sqrt(settings.share) * noise


def _chosen(total: int, share: float, generator: torch.Generator) -> Tensor:
    """``int(share * total)`` different numbers below ``total``."""
    return torch.randperm(total, generator=generator)[: int(share * total)]


_KINDS: Mapping[Kind, Callable[[Distortion, Tensor, torch.Generator], Tensor]] = {
    "pixels": _pixels,
    "blocks": _blocks,
    "crop": _crop,
    "noise": _noise,
}
