"""The painter: scenes to small RGB pictures with smooth edges.

Every sprite (shape, colour, size, shift) is drawn once, eight times too large, and shrunk by
averaging; a picture is then a few copies of cached cells onto a light ground.
"""

import random
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmalign.tinyworld.scenes import PLACES, Scene

BACKGROUND = (235, 235, 235)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 45),
    "green": (40, 160, 70),
    "blue": (45, 85, 210),
    "yellow": (235, 195, 30),
}
# Fractions of a cell's side: 12 px and 7 px in the cells of 16 px of a picture of 32 px.
EXTENT: dict[str, float] = {"small": 7 / 16, "large": 12 / 16}
SUPERSAMPLE = 8
MAX_BRIGHTNESS_SHIFT = 8


@lru_cache(maxsize=64)
def glyph(shape: str, size: str, cell: int) -> NDArray[np.float32]:
    """Draw how much of each pixel of a cell a shape covers.

    Args:
        shape: one of `scenes.SHAPES`.
        size: one of `scenes.SIZES`.
        cell: side of the cell in pixels.

    Returns:
        Coverage in [0, 1], [cell, cell], the shape in the middle. Shared: do not write to it.
    """
    side = cell * SUPERSAMPLE
    canvas = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(canvas)
    reach = EXTENT[size] * side / 2
    low, high = side / 2 - reach, side / 2 + reach - 1
    if shape == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif shape == "square":
        # Slightly inside the circle's box, so that areas differ less between shapes.
        inset = reach * 0.08
        draw.rectangle((low + inset, low + inset, high - inset, high - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(side / 2, low), (high, high), (low, high)], fill=255)
    else:
        raise ValueError(f"there is no glyph for the shape {shape!r}")
    fine = np.asarray(canvas, dtype=np.float32) / 255.0
    blocks = fine.reshape(cell, SUPERSAMPLE, cell, SUPERSAMPLE)
    coverage: NDArray[np.float32] = blocks.mean(axis=(1, 3))
    coverage.setflags(write=False)
    return coverage


@lru_cache(maxsize=4096)
def sprite(
    shape: str, colour: str, size: str, cell: int, shift: tuple[int, int]
) -> NDArray[np.uint8]:
    """Paint one cell: the shape in its colour on the ground, moved by `shift` (x, y) pixels."""
    coverage = np.roll(glyph(shape, size, cell), (shift[1], shift[0]), axis=(0, 1))[..., None]
    ground = np.asarray(BACKGROUND, dtype=np.float32)
    ink = np.asarray(PALETTE[colour], dtype=np.float32)
    cell_rgb = np.rint(ground + coverage * (ink - ground)).astype(np.uint8)
    cell_rgb.setflags(write=False)
    return cell_rgb


def render(scene: Scene, *, size: int = 32, rng: random.Random | None = None) -> Image.Image:
    """Paint a scene.

    Args:
        scene: what to paint.
        size: side of the picture in pixels; even, at least 16.
        rng: when given, each object moves by at most one pixel (of a picture of 32; more in
            proportion on larger ones) in x and y, and the whole picture becomes at most
            `MAX_BRIGHTNESS_SHIFT` grey levels lighter or darker.

    Returns:
        An RGB picture of `size` x `size` pixels.

    Raises:
        ValueError: `size` is odd or too small.
    """
    if size < 16 or size % 2:
        raise ValueError(f"a picture's size must be even and at least 16 pixels; got {size}")
    cell = size // 2
    # Below 32 px a whole pixel would be too much of a cell; then nothing moves.
    reach = size // 32
    canvas = np.full((size, size, 3), BACKGROUND[0], dtype=np.uint8)
    for item in scene.objects:
        row, column = divmod(PLACES.index(item.place), 2)
        shift = (0, 0) if rng is None else (rng.randint(-reach, reach), rng.randint(-reach, reach))
        canvas[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = sprite(
            item.shape, item.colour, item.size, cell, shift
        )
    if rng is not None:
        lift = rng.randint(-MAX_BRIGHTNESS_SHIFT, MAX_BRIGHTNESS_SHIFT)
        canvas = np.clip(canvas.astype(np.int16) + lift, 0, 255).astype(np.uint8)
    return Image.fromarray(canvas)
