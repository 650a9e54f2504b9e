"""How far a picture is from the nearest one that would be right, in pixels rather than objects."""

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmalign.tinyworld.detect import CELL, cells_of
from mmalign.tinyworld.language import Mention, matches
from mmalign.tinyworld.render import BACKGROUND, sprite
from mmalign.tinyworld.requirements import Requirement, slots
from mmalign.tinyworld.scenes import COLOURS, PLACES, SHAPES, SIZES, Object

# The painter moves an object by so much, in pixels.
SHIFTS = (-1, 0, 1)


@lru_cache(maxsize=1)
def _painted() -> tuple[tuple[Object, ...], NDArray[np.float64]]:
    """Every object at every shift, its place left open: names, and inks ``[S, CELL * CELL * 3]``.

    Inks are differences to the ground, 0 where nothing is painted and in units of the full range.
    """
    names, rows = [], []
    for shape, colour, size in itertools.product(SHAPES, COLOURS, SIZES):
        for shift in itertools.product(SHIFTS, SHIFTS):
            names.append(Object(shape=shape, colour=colour, size=size, place=PLACES[0]))
            rows.append(_ink(sprite(shape, colour, size, CELL, shift)))
    return tuple(names), np.stack(rows)


def _ink(pixels: NDArray[Any]) -> NDArray[np.float64]:
    ink: NDArray[np.float64] = ((pixels - np.array(BACKGROUND, dtype=np.float64)) / 255).reshape(-1)
    return ink


@lru_cache(maxsize=1024)
def _allowed(shape: str | None, colour: str | None, size: str | None) -> NDArray[np.intp]:
    """Which of the painted objects a mention may stand for, wherever it is to be."""
    mention = Mention(shape=shape, colour=colour, size=size)
    return np.flatnonzero([matches(mention, item) for item in _painted()[0]])


def distance(requirement: Requirement, image: Image.Image) -> float:
    """Root mean square difference to the nearest picture that shows what was asked for.

    The nearest of all scenes that satisfy the requirement, each object painted with any of the
    painter's shifts. What a cell shows best is found cell by cell, and which object goes into which
    cell by trying all orders.

    Args:
        requirement: What was asked for.
        image: Any picture, brought to the painter's size.

    Returns:
        In [0, 1], in units of the full range of a channel; 0 for the painter's own pictures.
    """
    cells = np.stack([_ink(cell) for cell in cells_of(image)])
    empty = np.square(cells).sum(1)
    _, inks = _painted()
    apart = empty[:, None] - 2 * cells @ inks.T + np.square(inks).sum(1)
    # Beside the objects, as many empty cells as are left: [cells, cells].
    costs = np.tile(empty, (len(cells), 1))
    for row, mention in enumerate(slots(requirement)):
        costs[row] = apart[:, _allowed(mention.shape, mention.colour, mention.size)].min(1)
        if mention.place is not None:
            costs[row, [place != mention.place for place in PLACES]] = np.inf
    orders = np.array(list(itertools.permutations(range(len(cells)))))
    least = costs[np.arange(len(cells)), orders].sum(1).min()
    return float(np.sqrt(max(least, 0.0) / cells.size))
