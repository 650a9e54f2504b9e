"""Grids and pictures in pictures: sizes, places, pixels, noise."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.vision.mia.layouts import (
    Grid,
    cell,
    centre,
    collage,
    inset,
    noisy,
    picture_in_picture,
    shape,
)

PLAIN = Grid(tile=10, gap=2, label_height=3, label_indent=1, font_size=3)


def solid(colour: str, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (6, (2, 3)), (9, (3, 3)),
        (5, (2, 3)), (7, (2, 4)), (8, (2, 4)), (10, (3, 4)), (16, (4, 4)),
    ],
)  # fmt: skip
def test_shape(count, expected):
    """The published grids, and others: floor(sqrt(n)) rows, just enough columns."""
    assert shape(count) == expected


def test_published_size_of_six():
    """3 columns and 2 gaps: 448 * 3 + 40 * 2 = 1424; 2 rows with their strips: 2 * 488 = 976.

    The number of pictures can be read back from the size: (1424 // 448) * (976 // 448) = 6.
    """
    width, height = Grid().size(6)
    assert (width, height) == (1424, 976)
    assert (width // 448) * (height // 448) == 6
    # Row 1, column 2: left 2 * (448 + 40), top 488 + 40.
    assert Grid().square(5, 6) == (976, 528, 1424, 976)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 9, 12])
def test_squares_lie_within_and_apart(count):
    width, height = PLAIN.size(count)
    covered = np.zeros((height, width), dtype=int)
    for index in range(count):
        left, top, right, bottom = PLAIN.square(index, count)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        covered[top:bottom, left:right] += 1
    assert covered.max() == 1 and covered.sum() == count * 100


def test_no_such_square():
    with pytest.raises(ValueError, match=r"no picture 4 .* grid of 4"):
        PLAIN.square(4, 4)
    with pytest.raises(ValueError, match="no picture -1"):
        cell(-1, 4)


def test_cells_are_equal_parts():
    assert cell(4, 6) == pytest.approx((1 / 3, 1 / 2, 2 / 3, 1))
    assert cell(0, 2) == (0, 0, 0.5, 1)
    # A square lies in its own cell by its middle, strips and gaps included.
    for index in range(6):
        left, top, right, bottom = Grid().square(index, 6)
        x, y = (left + right) / 2 / 1424, (top + bottom) / 2 / 976
        low_x, low_y, high_x, high_y = cell(index, 6)
        assert low_x < x < high_x and low_y < y < high_y


def test_collage_keeps_aspects_and_reading_order():
    """A picture twice as wide as high fills the upper half of its square; the rest is white."""
    pictures = [solid("red", (20, 10)), solid("green", (5, 10)), solid("blue", (3, 3))]
    made = collage(pictures, ["1", "2", "3"], Grid(tile=10, gap=2, label_height=0))
    assert made.size == (34, 10)
    assert made.getpixel((9, 4)) == (255, 0, 0) and made.getpixel((9, 5)) == (255, 255, 255)
    assert made.getpixel((10, 0)) == (255, 255, 255)
    assert made.getpixel((16, 9)) == (0, 128, 0) and made.getpixel((17, 0)) == (255, 255, 255)
    assert made.getpixel((33, 9)) == (0, 0, 255)


def test_labels_stand_above_their_pictures():
    settings = Grid(tile=60, gap=4, label_height=20, label_indent=10, font_size=16)
    blank = [solid("white", (8, 8))] * 4
    made = np.asarray(collage(blank, ["", "X", "", ""], settings).convert("L"))
    dark = np.argwhere(made < 128)
    assert len(dark) > 10
    (top, left), (bottom, right) = dark.min(0), dark.max(0)
    assert bottom < 20 and left >= 64 + 10 and right < 64 + 60 and top >= 0
    empty = collage(blank, ["A"] * 4, Grid(tile=60, gap=4, label_height=0))
    assert np.asarray(empty).min() == 255


def test_inset_by_hand():
    """0.7 * 1000 = 700 wide would be 700 high, more than 0.7 * 500 = 350: so 350 x 350, in the
    middle, at ((1000 - 350) / 2, (500 - 350) / 2).
    """
    assert inset((1000, 500), 1.0) == (325, 75, 675, 425)
    # Four times as wide as high: 700 x 175.
    assert inset((1000, 500), 4.0) == (150, 162, 850, 337)


@pytest.mark.parametrize("aspect", [0.01, 0.3, 1.0, 3.0, 90.0])
def test_inset_fits(aspect):
    left, top, right, bottom = inset((200, 90), aspect, share=0.5)
    assert 1 <= right - left <= 100 and 1 <= bottom - top <= 45


def test_picture_in_picture():
    background = solid("blue", (100, 50))
    made = picture_in_picture(background, solid("red", (4, 4)))
    pixels = np.asarray(made)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.sum() == 35 * 35 and red[7:42, 32:67].all()
    assert np.asarray(background)[..., 0].max() == 0


def test_centre():
    """16 of 24 patches: from 4 / 24 to 20 / 24."""
    assert centre(2 / 3) == pytest.approx((4 / 24, 4 / 24, 20 / 24, 20 / 24))


def test_noise_stays_in_its_box_and_in_range():
    picture = solid("white", (40, 30))
    generator = torch.Generator().manual_seed(0)
    made = np.asarray(noisy(picture, 225.0, generator, box=(10, 5, 20, 15)))
    outside = np.ones((30, 40), dtype=bool)
    outside[5:15, 10:20] = False
    assert (made[outside] == 255).all()
    # White with noise is white again half of the time, since values are clipped and never wrap;
    # wrapped ones would lie above 128 only 3 times in 4.
    inside = made[5:15, 10:20]
    assert 0.4 < (inside == 255).mean() < 0.6


def test_noise_has_its_deviation():
    grey = solid("#808080", (200, 200))
    made = np.asarray(noisy(grey, 20.0, torch.Generator().manual_seed(1)), dtype=float)
    assert made.std() == pytest.approx(20.0, rel=0.02) and made.mean() == pytest.approx(128, abs=1)
    assert (np.asarray(noisy(grey, 0.0, torch.Generator())) == 128).all()
