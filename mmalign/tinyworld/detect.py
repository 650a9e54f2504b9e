"""The eye: pictures to the objects in them, exactly on painted scenes.

Each cell is explained as ground plus one ink of the palette; the ink with the smallest
residual names the colour, and the coverage it implies is compared with every glyph (three
shapes, two sizes, small shifts). A cell whose best overlap is poor holds no object.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mmalign.tinyworld.render import BACKGROUND, PALETTE, glyph
from mmalign.tinyworld.scenes import COLOURS, PLACES, SHAPES, SIZES, Object

SIDE = 32
CELL = SIDE // 2
MAX_SHIFT = 2
# Glyphs are also compared blurred, in pixels, as autoencoders give them back.
BLURS = (0.0, 1.0, 1.5)
MIN_IOU = 0.6
# Fewer covered pixels than this are noise; the smallest glyph covers about 24.
MIN_AREA = 10.0
# Root mean square distance, in grey levels, between the inked pixels and their explanation.
MAX_RESIDUAL = 60.0


def _sharpen(coverage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Push coverage towards 0 or 1, so that noise and blur weigh less in the overlap."""
    sharp: NDArray[np.float32] = np.clip((coverage - 0.2) / 0.6, 0.0, 1.0).astype(np.float32)
    return sharp


def _blurred(coverage: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Smooth a coverage map by a Gaussian of `radius` pixels."""
    grey = Image.fromarray(np.rint(coverage * 255.0).astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255.0


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[tuple[str, str], ...], NDArray[np.float32], NDArray[np.float32]]:
    """Every glyph at every shift and blur.

    Returns:
        The (shape, size) of each, the coverages [T, CELL * CELL], and their sums [T].
    """
    names, rows = [], []
    for shape in SHAPES:
        for size in SIZES:
            for radius in BLURS:
                base = _sharpen(_blurred(glyph(shape, size, CELL), radius))
                for dy in range(-MAX_SHIFT, MAX_SHIFT + 1):
                    for dx in range(-MAX_SHIFT, MAX_SHIFT + 1):
                        names.append((shape, size))
                        rows.append(np.roll(base, (dy, dx), axis=(0, 1)).reshape(-1))
    stack = np.stack(rows)
    return tuple(names), stack, stack.sum(axis=-1)


def cells_of(image: Image.Image) -> NDArray[np.float32]:
    """Cut a picture into its four cells, in the order of `PLACES`: [4, CELL * CELL, 3]."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float32).reshape(2, CELL, 2, CELL, 3)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(len(PLACES), CELL * CELL, 3)


def _explain(
    cells: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """Explain each cell by one ink on the ground.

    Returns:
        The index of the best ink [4], its coverage [4, CELL * CELL] in [0, 1], and the root
        mean square residual over the covered pixels [4], in grey levels.
    """
    ground = np.asarray(BACKGROUND, dtype=np.float32)
    inks = np.asarray([PALETTE[name] for name in COLOURS], dtype=np.float32) - ground
    offset = cells - ground
    coverage = offset @ inks.T / (inks**2).sum(axis=1)
    coverage = np.clip(coverage, 0.0, 1.0).transpose(0, 2, 1)
    residual = offset[:, None] - coverage[..., None] * inks[None, :, None]
    squared = (residual**2).sum(axis=-1)
    best = squared.sum(axis=-1).argmin(axis=-1)
    rows = np.arange(len(cells))
    chosen, error = coverage[rows, best], squared[rows, best]
    weight = np.maximum(chosen.sum(axis=-1), 1e-6)
    return best, chosen, np.sqrt((error * chosen).sum(axis=-1) / weight)


def detect(image: Image.Image, *, min_iou: float = MIN_IOU) -> tuple[Object, ...]:
    """Read the objects of a picture.

    Args:
        image: any picture; it is converted to RGB and resized to 32 x 32 pixels if needed.
        min_iou: smallest overlap, in [0, 1], with the best glyph for a cell to hold an object.

    Returns:
        The objects in the order of `PLACES`; empty when nothing is recognised.

    Raises:
        ValueError: `min_iou` is outside [0, 1].
    """
    if not 0.0 <= min_iou <= 1.0:
        raise ValueError(f"min_iou must lie in [0, 1]; got {min_iou}")
    inks, coverage, residual = _explain(cells_of(image))
    coverage = _sharpen(coverage)
    area = coverage.sum(axis=-1)
    names, templates, template_area = _templates()
    found = []
    for cell in np.flatnonzero((area >= MIN_AREA) & (residual <= MAX_RESIDUAL)):
        common = np.minimum(coverage[cell], templates).sum(axis=-1)
        overlap = common / (area[cell] + template_area - common)
        best = int(overlap.argmax())
        if overlap[best] >= min_iou:
            shape, size = names[best]
            colour, place = COLOURS[inks[cell]], PLACES[cell]
            found.append(Object(shape=shape, colour=colour, size=size, place=place))
    return tuple(found)
