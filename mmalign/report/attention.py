"""Where a model looked: coarse grids of attention as pictures that lie over the prompt's."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from mmalign.report.pictures import data_uri

MAX_CELLS = 64 * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """The attention on one picture.

    Attributes:
        uri: ``data:`` URI of a small PNG, a pixel a cell, clear where there was none.
        share: Of its attention in that on all pictures, 0 to 1.
    """

    uri: str
    share: float


def heats(value: Any, pictures: int) -> dict[int, Heat]:
    """The heat maps of a row, by picture from 0; none where the column holds something else.

    Cells are coloured in proportion to the hottest one of all pictures, so that two pictures of a
    row can be compared.

    Args:
        value: A list of grids, rows of numbers, one a picture; or of
            ``{"image": picture from 0, "grid": rows of numbers}``.
        pictures: How many pictures the row shows.
    """
    grids = _grids(value, pictures)
    if not grids:
        return {}
    hottest = max(float(grid.max()) for grid in grids.values()) or 1.0
    total = sum(float(grid.sum()) for grid in grids.values()) or 1.0
    return {
        image: Heat(uri=_painted(grid / hottest), share=float(grid.sum()) / total)
        for image, grid in grids.items()
    }


def _grids(value: Any, pictures: int) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for place, item in enumerate(value if isinstance(value, list) else ()):
        named = isinstance(item, Mapping)
        image = item.get("image") if named else place
        grid = _numbers(item.get("grid") if named else item)
        if isinstance(image, int) and 0 <= image < pictures and grid is not None:
            found[image] = grid
    return found


def _numbers(grid: Any) -> np.ndarray | None:
    """Rows of numbers of 0 or more, equally long; None for anything else."""
    if not isinstance(grid, list) or not all(isinstance(row, list) and row for row in grid):
        return None
    cells: Sequence[Any] = [cell for row in grid for cell in row]
    if not 0 < len(cells) <= MAX_CELLS or len({len(row) for row in grid}) != 1:
        return None
    if not all(isinstance(c, int | float) and math.isfinite(c) and c >= 0 for c in cells):
        return None
    return np.array(grid, dtype=np.float64)


def _painted(grid: np.ndarray) -> str:
    colours = matplotlib.colormaps["inferno"](0.3 + 0.55 * grid)
    colours[..., 3] = 0.75 * grid
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "png")
