"""Recorded pictures of several sizes: declared buckets, one of which every picture has to fit.

A batch may hold pictures of several buckets. Latents and noise are stored at the size of the
largest, behind which there is nothing, and every call of the network is of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
"""Height and width."""


def check_buckets(buckets: Sequence[Size], unit: int) -> None:
    """Raise ValueError where a bucket is no size that the model draws, or stands twice.

    Args:
        buckets: Heights and widths in pixels.
        unit: What sides have to be a multiple of.
    """
    for height, width in buckets:
        if height < 1 or width < 1 or height % unit or width % unit:
            raise ValueError(
                f"bucket {height} x {width} does not fit this model; heights and widths must be "
                f"multiples of {unit} pixels"
            )
    if len(set(buckets)) != len(buckets):
        raise ValueError(f"a bucket stands twice in {list(buckets)}")


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose shape (height by width) is nearest, and of those nearest in area."""

    def distance(bucket: Size) -> tuple[float, float]:
        shape = math.log(size[0] / size[1]) - math.log(bucket[0] / bucket[1])
        area = math.log(size[0] * size[1]) - math.log(bucket[0] * bucket[1])
        return abs(shape), abs(area)

    return min(buckets, key=distance)


def covering(picture: Image.Image, size: Size) -> Image.Image:
    """The picture in RGB, scaled until it covers ``size``, its middle kept: never squashed."""
    height, width = size
    scale = max(height / picture.height, width / picture.width)
    # The part of the original that is kept, in its own pixels.
    kept_width, kept_height = width / scale, height / scale
    left = max(0.0, (picture.width - kept_width) / 2)
    top = max(0.0, (picture.height - kept_height) / 2)
    # A rounding must not reach beyond the picture, which PIL refuses.
    right, bottom = min(picture.width, left + kept_width), min(picture.height, top + kept_height)
    return picture.convert("RGB").resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )


def padded(value: Tensor, extent: Size) -> Tensor:
    """``[..., h, w]`` with zeros behind it up to height and width ``extent``."""
    height, width = value.shape[-2:]
    return functional.pad(value, (0, extent[1] - width, 0, extent[0] - height))


def cropped(value: Tensor, extent: Size) -> Tensor:
    """The part of ``[..., H, W]`` that `padded` had put something into."""
    return value[..., : extent[0], : extent[1]]


def by_extent(extents: Tensor) -> Iterator[tuple[Size, Tensor]]:
    """Each distinct row of ``[M, 2]`` with the numbers of the rows that are like it."""
    distinct, of = torch.unique(extents, dim=0, return_inverse=True)
    for number, (height, width) in enumerate(distinct.tolist()):
        yield (height, width), (of == number).nonzero().squeeze(1)
