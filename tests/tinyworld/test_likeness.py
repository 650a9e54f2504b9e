"""The judge that compares pixels with the nearest right picture."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.tinyworld.judges import LikenessJudge
from mmalign.tinyworld.language import Mention
from mmalign.tinyworld.likeness import distance
from mmalign.tinyworld.render import BACKGROUND, render
from mmalign.tinyworld.requirements import Requirement, realise, requirement_from_dict
from mmalign.tinyworld.scenes import PLACES, Object, Scene
from mmalign.tinyworld.tasks import TASKS

SQUARE = Object(shape="square", colour="red", size="large", place=PLACES[0])


def asked(*mentions: Mention) -> Requirement:
    return Requirement(category="single", mentions=mentions)


def picture(*objects: Object) -> Image.Image:
    return render(Scene(objects=objects))


def by_hand(image: Image.Image, nearest: Image.Image) -> float:
    """The definition, for a nearest picture that is known."""
    apart = (np.asarray(image, dtype=float) - np.asarray(nearest, dtype=float)) / 255
    return float(np.sqrt(np.square(apart).mean()))


def test_what_the_painter_paints_is_no_distance_away():
    """Wherever the requirement leaves it open, and moved by a pixel; a lighter ground is 8 / 255
    away at most."""
    prompts = TASKS["draw"].prompts(split="train", size=60, seed=1)
    rng = random.Random(0)
    wanted = [requirement_from_dict(p.meta["requirement"]) for p in prompts]
    plain = [render(realise(r, rng)) for r in wanted]
    assert LikenessJudge()(prompts, plain).tolist() == pytest.approx([1.0] * 60, abs=1e-7)
    moved = LikenessJudge()(prompts, [render(realise(r, rng), rng=rng) for r in wanted])
    assert (moved >= 1 - 8 / 255 - 1e-6).all() and (moved < 1).any()


def test_distances_by_hand():
    """An empty picture lacks the nearest square, which is the smallest one where size is open."""
    red = Mention(shape="square", colour="red")
    small = Object(shape="square", colour="red", size="small", place=PLACES[3])
    nothing = Image.new("RGB", (32, 32), BACKGROUND)
    assert distance(asked(red), nothing) == pytest.approx(by_hand(nothing, picture(small)))
    # Something more than was asked for costs what painting it over would.
    both = picture(SQUARE, small)
    assert distance(asked(red), both) == pytest.approx(by_hand(both, picture(SQUARE)))
    # A ground of another grey, everywhere: the nearest right picture has the square still.
    blue = Mention(shape="square", colour="blue", size="large", place=PLACES[0])
    inked = Object(shape="square", colour="blue", size="large", place=PLACES[0])
    found = picture(SQUARE)
    assert distance(asked(blue), found) == pytest.approx(by_hand(found, picture(inked)))


def test_the_place_asked_for_counts_and_each_object_has_its_own():
    here, there = (
        Mention(shape="square", colour="red", size="large", place=place) for place in PLACES[:2]
    )
    found = picture(SQUARE)
    moved = picture(Object(shape="square", colour="red", size="large", place=PLACES[1]))
    assert distance(asked(here), found) == pytest.approx(0.0, abs=1e-6)
    assert distance(asked(there), found) == pytest.approx(by_hand(found, moved))
    one = Mention(shape="square", colour="red", size="large")
    twice = picture(SQUARE, Object(shape="square", colour="red", size="large", place=PLACES[1]))
    assert distance(asked(one, one), found) == pytest.approx(by_hand(found, twice))


def test_right_pictures_earn_more_than_wrong_ones():
    """Of pairs that differ in one thing, nearly all: a brighter ground can weigh more than it."""
    pairs = TASKS["draw"].preferences(split="train", size=200, seed=1)
    prompts = [pair.prompt for pair in pairs]
    judge = registry.resolve("rewards", "tinyworld_likeness")()
    chosen = judge(prompts, [pair.chosen for pair in pairs])
    rejected = judge(prompts, [pair.rejected for pair in pairs])
    assert chosen.dtype == torch.float32 and float((chosen > rejected).float().mean()) > 0.95


def test_what_it_cannot_judge_is_an_error():
    prompts = TASKS["draw"].prompts(split="train", size=1, seed=1)
    with pytest.raises(ValueError, match="Image; got str"):
        LikenessJudge()(prompts, ["a picture"])
