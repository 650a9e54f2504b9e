"""The painter and the eye agree, and the eye is neither fooled by smears nor by mild noise."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mmalign.tinyworld.detect import detect
from mmalign.tinyworld.render import BACKGROUND, PALETTE, render
from mmalign.tinyworld.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Object,
    Scene,
    from_dict,
    perturb,
    random_scene,
    to_dict,
)


def _scenes(number: int) -> list[Scene]:
    rng = random.Random(7)
    return [random_scene(rng) for _ in range(number)]


def test_scene_refuses_what_the_world_cannot_hold() -> None:
    here = Object(shape="circle", colour="red", size="small", place="top left")
    with pytest.raises(ValueError, match="share one place"):
        Scene(objects=(here, here))
    with pytest.raises(ValueError, match="1 to 4"):
        Scene(objects=())
    with pytest.raises(ValueError, match="colour must be one of"):
        Object(shape="circle", colour="pink", size="small", place="top left")
    with pytest.raises(ValueError, match="key 'objects'"):
        from_dict({})


def test_scene_order_does_not_matter_and_dict_round_trips() -> None:
    for scene in _scenes(50):
        assert Scene(objects=scene.objects[::-1]) == scene
        assert from_dict(to_dict(scene)) == scene


def test_perturb_changes_exactly_one_thing() -> None:
    """One attribute differs, or the objects differ by one that came or went."""
    rng = random.Random(0)
    changes = set()
    for scene in _scenes(300):
        before, after = set(scene.objects), set(perturb(scene, rng).objects)
        gone, come = before - after, after - before
        if len(before) == len(after):
            assert len(gone) == len(come) == 1
            old, new = gone.pop(), come.pop()
            names = [n for n in Object.__slots__ if getattr(old, n) != getattr(new, n)]
            assert len(names) == 1
            changes.add(names[0])
        else:
            assert len(gone) + len(come) == 1
            changes.add("removed" if gone else "added")
    assert changes == {"shape", "colour", "size", "place", "removed", "added"}


def test_every_single_object_is_read_back() -> None:
    for shape in SHAPES:
        for colour in COLOURS:
            for size in SIZES:
                for place in PLACES:
                    item = Object(shape=shape, colour=colour, size=size, place=place)
                    assert detect(render(Scene(objects=(item,)))) == (item,)


@pytest.mark.parametrize("size", [32, 64])
def test_detect_is_exact_on_painted_scenes(size: int) -> None:
    rng = random.Random(1)
    for scene in _scenes(1000 if size == 32 else 200):
        assert detect(render(scene, size=size, rng=rng)) == scene.objects


def test_detect_survives_blur_and_noise() -> None:
    """Blur of 0.6 px with noise of 12 grey levels: at least 97 % of objects right, as few wrong."""
    rng, noise = random.Random(2), np.random.default_rng(2)
    right = total = invented = 0
    for scene in _scenes(300):
        blurred = render(scene, rng=rng).filter(ImageFilter.GaussianBlur(0.6))
        pixels = np.asarray(blurred, dtype=np.float64) + noise.normal(0, 12, (32, 32, 3))
        found = set(detect(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))))
        right += len(found & set(scene.objects))
        invented += len(found - set(scene.objects))
        total += len(scene.objects)
    assert right >= 0.97 * total
    assert invented <= 0.03 * total


def test_smears_are_no_objects() -> None:
    noise = np.random.default_rng(3)
    plain = [Image.new("RGB", (32, 32), colour) for colour in (*PALETTE.values(), BACKGROUND)]
    static = [
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(50)
    ]
    scene = random_scene(random.Random(4), num_objects=4)
    washed = render(scene).filter(ImageFilter.GaussianBlur(6))
    black = Image.new("RGB", (32, 32), BACKGROUND)
    black.paste((0, 0, 0), (3, 3, 13, 13))
    for image in [*plain, *static, washed, black]:
        assert detect(image) == ()


def test_an_object_between_the_cells_is_no_object() -> None:
    item = Object(shape="circle", colour="red", size="large", place="top left")
    pixels = np.asarray(render(Scene(objects=(item,))))
    assert detect(Image.fromarray(np.roll(pixels, (8, 8), axis=(0, 1)))) == ()


def test_render_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="even"):
        render(_scenes(1)[0], size=33)


def test_render_is_deterministic() -> None:
    scene = _scenes(1)[0]
    first = render(scene, rng=random.Random(5))
    assert first.tobytes() == render(scene, rng=random.Random(5)).tobytes()
