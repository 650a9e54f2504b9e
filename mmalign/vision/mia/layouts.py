"""Several pictures as one: grids and pictures in pictures.

The numbers are those of MIA-DPO's released code and can be changed. A grid may have any number of
pictures, and pictures any aspect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""
Region: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How pictures are laid out in a grid.

    Attributes:
        tile: Side of a picture's square in pixels.
        gap: Pixels between columns.
        label_height: Height of the strip above each row that holds the labels; 0 for no labels.
        label_indent: Pixels from the left of a square to its label.
        font_size: Of the labels, in Pillow's own font.
    """

    tile: int = 448
    gap: int = 40
    label_height: int = 40
    label_indent: int = 20
    font_size: int = 36

    def __post_init__(self) -> None:
        if self.tile < 1 or self.font_size < 1:
            raise ValueError(
                f"tile={self.tile} and font_size={self.font_size} must be at least 1 pixel"
            )
        if min(self.gap, self.label_height, self.label_indent) < 0:
            raise ValueError("gap, label_height and label_indent must be 0 or more pixels")

    def size(self, count: int) -> tuple[int, int]:
        """Width and height of the whole grid; 1424 x 976 for six squares of 448."""
        rows, columns = shape(count)
        width = columns * self.tile + (columns - 1) * self.gap
        return width, rows * (self.tile + self.label_height)

    def square(self, index: int, count: int) -> Box:
        """Where picture ``index``, from 0, has its square."""
        _check_index(index, count)
        row, column = divmod(index, shape(count)[1])
        left = column * (self.tile + self.gap)
        top = row * (self.tile + self.label_height) + self.label_height
        return left, top, left + self.tile, top + self.tile


def shape(count: int) -> tuple[int, int]:
    """Rows and columns of a grid: as near to a square as can be, never higher than wide.

    ``rows = floor(sqrt(count))`` and just enough columns: 1 x 2, 1 x 3, 2 x 2, 2 x 3 and 3 x 3 for
    2, 3, 4, 6 and 9, as published. For counts such as 5, 7 or 8 the last row is not full.
    """
    if count < 1:
        raise ValueError(f"a grid has at least one picture, not {count}")
    rows = math.isqrt(count)
    return rows, -(-count // rows)


def cell(index: int, count: int) -> Region:
    """The share of a grid that belongs to a picture: the grid cut into equal rows and columns.

    Half of a gap, and the strip with the label, so belong to the picture beside them.
    """
    _check_index(index, count)
    rows, columns = shape(count)
    row, column = divmod(index, columns)
    return column / columns, row / rows, (column + 1) / columns, (row + 1) / rows


def collage(pictures: Sequence[Image.Image], labels: Sequence[str], settings: Grid) -> Image.Image:
    """A grid of pictures, each scaled into the top left of its white square, with labels above.

    Args:
        pictures: In reading order, RGB.
        labels: One for each.
        settings: Sizes.
    """
    count = len(pictures)
    canvas = Image.new("RGB", settings.size(count), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(settings.font_size)
    squares = [settings.square(index, count) for index in range(count)]
    if settings.label_height:
        for (left, top, _, _), label in zip(squares, labels, strict=True):
            at = (left + settings.label_indent, top - settings.label_height)
            draw.text(at, label, fill="black", font=font)
    # Pictures come last, so that no letter that hangs below its strip covers a part of one.
    for (left, top, _, _), picture in zip(squares, pictures, strict=True):
        canvas.paste(_fitted(picture, settings.tile), (left, top))
    return canvas


def inset(background: tuple[int, int], aspect: float, *, share: float = 0.7) -> Box:
    """Where a picture stands within another: in its middle, as large as ``share`` of each side.

    Args:
        background: Width and height of the outer picture.
        aspect: Width over height of the inner one, which is kept.
        share: Of the background's width and of its height that the inner picture has at most.

    Returns:
        In a background of 1000 x 500 a square has 350 pixels a side and stands at (325, 75).
    """
    width, height = background
    if share * width / aspect <= share * height:
        across = max(int(share * width), 1)
        down = max(int(across / aspect), 1)
    else:
        down = max(int(share * height), 1)
        across = max(int(down * aspect), 1)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def picture_in_picture(
    background: Image.Image, picture: Image.Image, *, share: float = 0.7
) -> Image.Image:
    """``picture`` in the middle of ``background``; see `inset`."""
    left, top, right, bottom = inset(background.size, picture.width / picture.height, share=share)
    made = background.copy()
    scaled = picture.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    made.paste(scaled, (left, top))
    return made


def centre(share: float) -> Region:
    """The middle of a picture that has ``share`` of its width and of its height."""
    edge = (1 - share) / 2
    return edge, edge, 1 - edge, 1 - edge


def noisy(
    picture: Image.Image, sigma: float, generator: torch.Generator, *, box: Box | None = None
) -> Image.Image:
    """The picture with Gaussian noise, clipped to 0..255.

    Args:
        picture: RGB.
        sigma: Standard deviation in grey levels of 0..255.
        generator: Of the noise.
        box: The part that is spoiled; None for all of it.
    """
    left, top, right, bottom = box or (0, 0, *picture.size)
    values = np.array(picture, dtype=np.float32)
    noise = torch.randn(bottom - top, right - left, 3, generator=generator).numpy()
    values[top:bottom, left:right] += sigma * noise
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """As large as a square of ``side`` pixels allows, its aspect kept."""
    longest = max(picture.size)
    size = (max(picture.width * side // longest, 1), max(picture.height * side // longest, 1))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"there is no picture {index} (from 0) in a grid of {count}")
