"""Kilobytes of a JPEG file as a reward."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmalign import registry
from mmalign.rewards.jpeg import JPEGReward
from mmalign.types import Prompt

GREY = Image.new("RGB", (32, 32), (128, 128, 128))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
PROMPTS = [Prompt(content="a red circle")] * 2


def kilobytes(picture: Image.Image, quality: int) -> float:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return len(file.getvalue()) / 1000


def test_sizes_are_those_of_files():
    found = JPEGReward()(PROMPTS, [GREY, NOISE]).tolist()
    assert found == pytest.approx([-kilobytes(GREY, 95), -kilobytes(NOISE, 95)])
    assert found[0] > found[1]


def test_larger_turns_the_sign_and_quality_counts():
    found = JPEGReward(larger=True, quality=40)(PROMPTS, [GREY, NOISE]).tolist()
    assert found == pytest.approx([kilobytes(GREY, 40), kilobytes(NOISE, 40)])


def test_a_clip_is_the_mean_of_its_frames():
    found = registry.resolve("rewards", "jpeg")()(PROMPTS[:1], [(GREY, NOISE)])
    assert found.item() == pytest.approx(-(kilobytes(GREY, 95) + kilobytes(NOISE, 95)) / 2)


def test_what_it_cannot_read_is_an_error():
    with pytest.raises(ValueError, match="output 1 is a str"):
        JPEGReward()(PROMPTS, [GREY, "a text"])
    with pytest.raises(ValueError, match="quality=0"):
        JPEGReward(quality=0)
