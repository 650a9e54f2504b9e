"""Distances between samples, by hand, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmalign.diversity import CLIPDistance, NGramDistance, PixelDistance, diversity
from mmalign.types import Output


def plain(colour: str, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_ngrams_by_hand() -> None:
    """ "a b c" and "a b d": words 2 of 4 in common, pairs 1 of 3: (1/2 + 2/3) / 2 = 7/12."""
    found = NGramDistance()(["a b c", "a b d", "A b c!", ""])
    assert float(found[0, 1]) == pytest.approx(7 / 12)
    # "!" is a token: 3 of 4 words, and 2 of 3 pairs.
    assert float(found[0, 2]) == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert float(found[0, 3]) == 1.0
    assert torch.equal(found, found.T) and float(found.diagonal().abs().max()) == 0.0


def test_ngrams_of_short_texts() -> None:
    """One word has no pair: only words are compared; nothing against nothing is no distance."""
    assert NGramDistance()(["yes", "yes"]).tolist() == [[0, 0], [0, 0]]
    assert float(NGramDistance()(["yes", "no"])[0, 1]) == 1.0
    assert float(NGramDistance()(["", ""])[0, 1]) == 0.0


def test_pixels_by_hand() -> None:
    """Black to white is 1; to red a third of the squares, sqrt(1/3). Sizes may differ."""
    found = PixelDistance()([plain("black"), plain("white"), plain("red", (40, 24))])
    assert float(found[0, 1]) == pytest.approx(1.0)
    assert float(found[0, 2]) == pytest.approx(3**-0.5)
    assert float(found.diagonal().abs().max()) == 0.0
    same = [plain("orange"), plain("orange"), plain("orange")]
    assert diversity(PixelDistance(), same) == 0.0


def test_diversity_is_the_mean_over_different_samples() -> None:
    """Black, white, white: pairs 1, 1 and 0, mean 2/3; a repeat of one sample for all is 0."""
    found = diversity(PixelDistance(), [plain("black"), plain("white"), plain("white")])
    assert found == pytest.approx(2 / 3)


def test_clip_sees_pictures() -> None:
    """The shipped tiny CLIP: a picture is at 0 from itself, farther from another."""
    pictures = [plain("red", (16, 16)), plain("red", (16, 16)), plain("blue", (16, 16))]
    found = CLIPDistance()(pictures)
    assert found.shape == (3, 3) and float(found[0, 1]) == pytest.approx(0, abs=1e-5)
    assert float(found[0, 2]) > 1e-3 and bool((found >= 0).all())


@pytest.mark.parametrize(
    ("measure", "outputs", "message"),
    [
        (NGramDistance(), ["a", plain("red")], "output 1 is a Image; pictures have `pixels`"),
        (PixelDistance(), [plain("red"), "a"], "output 1 is a str; texts have `ngrams`"),
        (CLIPDistance(), ["a", "b"], "output 0 is a str"),
    ],
)
def test_the_wrong_measure_names_the_right_ones(
    measure: NGramDistance, outputs: Sequence[Output], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        diversity(measure, outputs)


def test_what_a_measure_may_not_return() -> None:
    def one(outputs: Sequence[Output]) -> Tensor:
        return torch.zeros(1)

    def nowhere(outputs: Sequence[Output]) -> Tensor:
        return torch.full((2, 2), torch.nan)

    with pytest.raises(ValueError, match="must compare each with each"):
        diversity(one, ["a", "b"])
    with pytest.raises(ValueError, match="not finite"):
        diversity(nowhere, ["a", "b"])


def test_settings() -> None:
    with pytest.raises(ValueError, match="longest=0"):
        NGramDistance(longest=0)
    with pytest.raises(ValueError, match="side=0"):
        PixelDistance(side=0)
