"""Distorted pictures: how much changes, to what, and how pixels are laid out."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from mmalign import rng
from mmalign.vision.distortion import Distortion, Patches, distorted


def picture(side: int = 10, *, seed: int = 0) -> Tensor:
    """[3, side, side] normalised values; no two are equal."""
    return torch.randn(3, side, side, generator=rng.generator("picture", seed))


def draw(number: int = 0) -> torch.Generator:
    return rng.generator("draw", number)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """[H, W] bool: where every channel changed; nowhere may only some do."""
    each = before != after
    assert torch.equal(each.all(0), each.any(0))
    return each.all(0)


def test_thirty_of_a_hundred_pixels_become_the_mean() -> None:
    """Exactly int(0.3 * 100) places, all channels, to the mean of the whole tensor."""
    before = picture()
    after = Distortion()(before, draw())
    places = changed(before, after)
    assert int(places.sum()) == 30
    assert torch.equal(after[:, places], before.mean().expand(3, 30))
    assert torch.equal(before, picture())


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.299, 29), (1.0, 100)])
def test_shares_are_rounded_down(share: float, expected: int) -> None:
    before = picture()
    found = changed(before, Distortion(share=share)(before, draw()))
    assert int(found.sum()) == expected


def test_blocks() -> None:
    """Of 3 x 3 blocks of 3 pixels int(0.5 * 9) = 4 are set; the tenth row and column stay."""
    before = picture()
    places = changed(before, Distortion(kind="blocks", share=0.5, block=3)(before, draw()))
    assert int(places.sum()) == 4 * 9
    assert not places[9].any() and not places[:, 9].any()
    per_block = places[:9, :9].view(3, 3, 3, 3).float().mean((1, 3))
    assert sorted(per_block.flatten().tolist()) == [0.0] * 5 + [1.0] * 4
    with pytest.raises(ValueError, match="does not fit"):
        Distortion(kind="blocks")(before, draw())


def test_crop_enlarges_a_small_part() -> None:
    """On a ramp the values of a crop span its side: at most sqrt(0.2 * 4 / 3) of the width.

    A crop of area a and aspect r is sqrt(a r) wide, so no wider than sqrt(0.2 * 4/3) = 0.516.
    """
    side = 100
    ramp = torch.arange(float(side)).expand(3, side, side) / side
    spans = []
    for number in range(50):
        after = Distortion(kind="crop", share=0.2)(ramp, draw(number))
        assert after.shape == ramp.shape
        spans.append(float(after.max() - after.min()))
    assert max(spans) <= math.sqrt(0.2 * 4 / 3)
    assert min(spans) < 0.25 and len(set(spans)) > 20


def test_noise_keeps_the_variance() -> None:
    """(1 - s) of the picture's variance and s of noise: 1 for a picture of variance 1."""
    before = picture(200)
    after = Distortion(kind="noise", share=0.6)(before, draw())
    assert float(after.var()) == pytest.approx(1.0, abs=0.02)
    overlap = float((before * after).mean())
    assert overlap == pytest.approx(math.sqrt(0.4), abs=0.02)
    assert torch.equal(Distortion(kind="noise", share=0.0)(before, draw()), before)


@pytest.mark.parametrize("kind", ["pixels", "blocks", "crop", "noise"])
def test_seed_in_distortion_out(kind: str) -> None:
    before = picture(40)
    first, second, other = (
        Distortion(kind=kind, block=5)(before, draw(number)) for number in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(
    "settings", [{"share": 1.1}, {"kind": "crop", "share": 0.001}, {"block": 0}]
)
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share|block"):
        Distortion(**settings)


def test_every_picture_and_every_tile_is_distorted_apart() -> None:
    """Two pictures of three tiles each: 30 places in every tile, not the same ones."""
    pixels = torch.stack([picture(seed=i) for i in range(6)]).view(2, 3, 3, 10, 10)
    sizes = torch.tensor([[10, 10], [10, 10]])
    found = distorted(
        {"pixel_values": pixels, "image_sizes": sizes}, Distortion(), draw(), patches=None
    )
    assert found["image_sizes"] is sizes
    places = [
        changed(before, after)
        for before, after in zip(
            pixels.flatten(0, 1), found["pixel_values"].flatten(0, 1), strict=True
        )
    ]
    assert [int(p.sum()) for p in places] == [30] * 6
    assert len({p.numpy().tobytes() for p in places}) == 6


def test_rows_of_patches_are_pictures() -> None:
    """The layout of transformers' own processor, there and back; two frames hold one picture.

    The first pixel of the processed picture is the picture's own, normalised: red 255 becomes
    (1 - mean) / std of the first channel.
    """
    processor = Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2)
    pixels = torch.randint(0, 256, (16, 24, 3), generator=draw(), dtype=torch.uint8)
    pixels[0, 0] = torch.tensor([255, 0, 0])
    found = processor([Image.fromarray(pixels.numpy())], do_resize=False, return_tensors="pt")
    layout = Patches(size=4, merge=2, frames=2)
    rows, grid = found["pixel_values"], found["image_grid_thw"][0]
    shown = layout.picture(rows, grid)
    assert shown.shape == (3, 16, 24)
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = (pixels.permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(shown, expected, atol=1e-5)
    assert torch.equal(layout.rows(shown), rows)

    spoilt = distorted(dict(found), Distortion(), draw(1), patches=layout)["pixel_values"]
    assert spoilt.shape == rows.shape
    places = changed(shown, layout.picture(spoilt, grid))
    assert int(places.sum()) == int(0.3 * 16 * 24)
    assert torch.equal(layout.rows(layout.picture(spoilt, grid)), spoilt)


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="laid out"):
        distorted({"pixel_values": torch.zeros(4, 12)}, Distortion(), draw(), patches=None)
    film = {"pixel_values": torch.zeros(8, 12), "image_grid_thw": torch.tensor([[2, 2, 2]])}
    with pytest.raises(ValueError, match="film"):
        distorted(film, Distortion(), draw(), patches=Patches(size=2, merge=1, frames=1))
