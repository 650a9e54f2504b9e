"""Questions about one of several pictures: what is shown, said, and spoiled."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.vision.mia.composing import (
    Composed,
    Corruption,
    Formats,
    Noise,
    compose,
    spoiled,
    target_box,
)
from mmalign.vision.mia.layouts import Grid
from mmalign.vision.mia.questions import Asked
from mmalign.vision.mia.wording import Wording

FORMATS = Formats(grid=Grid(tile=20, gap=2, label_height=4, label_indent=1, font_size=4))
RED = Asked(
    image=Image.new("RGB", (10, 10), "red"),
    question="What is this?",
    truth="red",
    before=({"role": "system", "content": "Be brief."},),
    meta={"answer": "red"},
)
BLUES = [Image.new("RGB", (40, 30), (0, 0, 200 + i)) for i in range(3)]


def made(form: str, others: int, *, seed: int = 0, refusal: bool = False) -> Composed:
    return compose(
        RED,
        BLUES[:others],
        form,
        refusal=refusal,
        draw=Random(seed),
        formats=FORMATS,
        wording=Wording(),
    )


def said(found: Composed) -> str:
    """The user's message as one string."""
    parts = found.prompt.content[-1]["content"]
    return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)


def red_pixels(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) == (255, 0, 0)).all(-1)


def test_sequence():
    places = set()
    for seed in range(12):
        found = made("sequence", 2, seed=seed)
        k = found.target
        places.add(k)
        assert [image is RED.image for image in found.prompt.images] == [
            index == k for index in (1, 2, 3)
        ]
        expected = "Image1:<image>\nImage2:<image>\nImage3:<image>\n"
        assert said(found) == f"{expected}In Image{k}, what is this?"
        assert found.truth == "red" and found.region is None and found.count == 3
        assert found.prompt.content[0]["role"] == "system"
        assert found.prompt.meta == {"answer": "red"}
    assert places == {1, 2, 3}


def test_collage():
    """The red picture fills the square that its box says, in the cell that its region says."""
    for seed in range(6):
        found = made("collage", 3, seed=seed)
        (image,) = found.prompt.images
        assert image.size == (42, 48)
        left, top, right, bottom = target_box(found, RED, FORMATS)
        assert red_pixels(image).sum() == red_pixels(image)[top:bottom, left:right].sum() == 400
        x, y, x_end, y_end = found.region
        assert x * 42 < (left + right) / 2 < x_end * 42 and y * 48 < (top + bottom) / 2 < y_end * 48
        assert said(found) == f"<image>In Image{found.target}, what is this?"


def test_inset():
    found = made("inset", 1)
    (image,) = found.prompt.images
    assert image.size == (40, 30) and found.count == 2 and found.target == 1
    # 0.7 * 30 = 21 pixels a side.
    assert target_box(found, RED, FORMATS) == (9, 4, 30, 25)
    assert red_pixels(image).sum() == 21 * 21
    assert found.region == pytest.approx((1 / 6, 1 / 6, 5 / 6, 5 / 6))
    assert said(found).endswith(", what is this?")
    assert said(found).removeprefix("<image>").startswith(Wording().lead_ins)


def test_refusal():
    found = made("sequence", 2, refusal=True)
    assert found.target == 4 and said(found).endswith("In Image4, what is this?")
    assert found.truth == "Only 3 images were given, so there is no Image4."
    # The answer to the question that is asked no more is not passed on.
    assert found.prompt.meta == {} and found.region is None


def test_noise_on_the_target_alone():
    """The collage's noise, as published, spoils one square of what the model sees, nothing else.

    Pure red stays as it is where all three channels are clipped, once in 8: 350 of 400 change.
    """
    clean = made("collage", 3)
    box = target_box(clean, RED, FORMATS)
    found = spoiled(clean, box, Corruption(), torch.Generator().manual_seed(0))
    assert found.prompt is clean.prompt
    before, after = (np.asarray(one.images[0]) for one in (found.prompt, found.seen))
    changed = (before != after).any(-1)
    left, top, right, bottom = box
    assert changed.sum() == changed[top:bottom, left:right].sum() > 320


def test_noise_on_one_picture_of_a_sequence():
    clean = made("sequence", 2)
    noise = Corruption(sequence=Noise(sigma=50.0))
    found = spoiled(clean, None, noise, torch.Generator().manual_seed(0))
    same = [a is b for a, b in zip(found.prompt.images, found.seen.images, strict=True)]
    assert [i + 1 for i, kept in enumerate(same) if not kept] == [found.target]


def test_no_noise():
    assert spoiled(made("sequence", 2), None, Corruption(), torch.Generator()).seen.images == (
        made("sequence", 2).prompt.images
    )
    refused = made("collage", 2, refusal=True)
    assert spoiled(refused, None, Corruption(), torch.Generator()) is refused
    whole = Corruption(collage=Noise(sigma=9.0, where="whole"))
    assert spoiled(refused, None, whole, torch.Generator()) is not refused


def test_published_shares_of_counts():
    """Of 36410 rows of COCO 20000, 6000, 6000 and 4410 became 2 to 5 pictures in sequence; 18000,
    5000, 5000, 4000 and 4410 grids of 2, 3, 4, 6 and 9.
    """
    draw = Random(0)
    drawn = Counter(Formats().drawn(draw, numbered=False) for _ in range(30_000))
    forms = Counter(form for form, _ in drawn.elements())
    assert all(number == pytest.approx(10_000, rel=0.05) for number in forms.values())
    for form, table in (
        ("sequence", {2: 20000, 3: 6000, 4: 6000, 5: 4410}),
        ("collage", {2: 18000, 3: 5000, 4: 5000, 6: 4000, 9: 4410}),
    ):
        for count, rows in table.items():
            assert drawn[form, count] / forms[form] == pytest.approx(rows / 36410, abs=0.02)


def test_every_fiftieth_row_refuses():
    assert [row for row in range(120) if Formats().refuses(row)] == [49, 99]
    assert not Formats(refusal_every=None).refuses(49)
    assert not Formats(sequence=0.0, collage=0.0).refuses(49)
    forms = {Formats().drawn(Random(i), numbered=True)[0] for i in range(50)}
    assert forms == {"sequence", "collage"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence": 0.0, "collage": 0.0, "inset": 0.0}, "one more than 0"),
        ({"sequence": -1.0}, "must be 0 or more"),
        ({"sequence_counts": {1: 1.0}}, "sequence_counts"),
        ({"collage_counts": {}}, "collage_counts"),
        ({"inset_share": 1.0}, "inset_share"),
        ({"refusal_every": 0}, "refusal_every"),
    ],
)
def test_senseless_formats_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Formats(**settings)
