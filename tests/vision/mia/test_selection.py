"""Shares of attention, thresholds and filters, against numbers worked out by hand."""

import math

import pytest
import torch

from mmalign.vision.mia.attention import Look, attention_maps
from mmalign.vision.mia.layouts import cell, centre
from mmalign.vision.mia.selection import (
    CENTRAL,
    Selection,
    interpolated,
    region_share,
    sequence_share,
    unfit,
)
from mmalign.vision.spans import Seen, grid

SIDE = 24


def plain(start: int = 0) -> Seen:
    """A picture of 24 x 24 tokens from place ``start`` on."""
    boxes = grid(SIDE, SIDE).flatten(0, 1).float()
    return Seen(places=torch.arange(start, start + SIDE**2), boxes=boxes)


def looking(attention: torch.Tensor, count: int) -> Look:
    pictures = tuple(plain(3 + i * (SIDE**2 + 4)) for i in range(count))
    return Look(pictures=pictures, attention=attention, perplexity=2.0)


def length(count: int) -> int:
    return 3 + count * (SIDE**2 + 4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sequence_shares(count):
    """All attention on one picture: 1 for it, 0 for others. The same on every token: 1 / n."""
    one = torch.zeros(length(count))
    one[looking(one, count).pictures[1].places] = 0.5
    assert sequence_share(looking(one, count), 1) == 1
    assert sequence_share(looking(one, count), 0) == 0
    uniform = looking(torch.full((length(count),), 0.01), count)
    for target in range(count):
        assert sequence_share(uniform, target) == pytest.approx(1 / count)


def test_sequence_share_is_of_means():
    """Pictures of 1 and 3 tokens: means 0.2 and (0.1 + 0.2 + 0.3) / 3 = 0.2, so half each, though
    the second has three quarters of the sum.
    """
    boxes = torch.rand(3, 4)
    look = Look(
        pictures=(
            Seen(places=torch.tensor([1]), boxes=boxes[:1]),
            Seen(places=torch.tensor([3, 4, 5]), boxes=boxes),
        ),
        attention=torch.tensor([0.9, 0.2, 0.9, 0.1, 0.2, 0.3]),
        perplexity=2.0,
    )
    assert sequence_share(look, 0) == pytest.approx(0.5)


@pytest.mark.parametrize("count", [2, 3, 4, 6, 9])
def test_collage_shares(count):
    """1 where all lies in the picture's block; 1 / n where every token gets the same."""
    seen = plain()
    for target in range(count):
        region = cell(target, count)
        uniform = region_share(torch.full((576,), 0.3), seen, region)
        assert uniform == pytest.approx(1 / count)
        # The block as the formula has it: 24 rows and columns cut into equal blocks.
        rows, columns = {2: (1, 2), 3: (1, 3), 4: (2, 2), 6: (2, 3), 9: (3, 3)}[count]
        row, column = divmod(target, columns)
        down, across = SIDE // rows, SIDE // columns
        block = torch.zeros(SIDE, SIDE)
        block[row * down : (row + 1) * down, column * across : (column + 1) * across] = 1.0
        assert region_share(block.flatten(), seen, region) == pytest.approx(1.0)
        assert region_share(1 - block.flatten(), seen, region) == 0.0


def test_inset_share():
    """The middle 16 x 16 of 24 x 24 tokens: 256 / 576 = 0.4444."""
    seen, region = plain(), centre(CENTRAL)
    assert region_share(torch.ones(576), seen, region) == pytest.approx(256 / 576)
    middle = torch.zeros(24, 24)
    middle[4:20, 4:20] = 1.0
    assert region_share(middle.flatten(), seen, region) == pytest.approx(1.0)


def test_tokens_without_a_place_count_nowhere():
    """Three tokens of weight 1, 2 and (a line's end) 5: the left half has 1 / 3."""
    boxes = torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [math.nan] * 4])
    seen = Seen(places=torch.arange(3), boxes=boxes)
    share = region_share(torch.tensor([1.0, 2.0, 5.0]), seen, (0, 0, 0.5, 1))
    assert share == pytest.approx(1 / 3)


def test_no_attention_is_no_share():
    assert math.isnan(sequence_share(looking(torch.zeros(length(2)), 2), 0))
    assert math.isnan(region_share(torch.zeros(576), plain(), cell(0, 2)))
    # Two by two tokens have none in the middle one of three columns.
    coarse = Seen(places=torch.arange(4), boxes=grid(2, 2).flatten(0, 1).float())
    assert math.isnan(region_share(torch.ones(4), coarse, cell(1, 3)))


def test_published_thresholds():
    """At the threshold a sequence is taken, a grid and a picture in a picture are not."""
    chosen = Selection()
    published = {
        "sequence": {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6},
        "collage": {2: 0.7, 3: 0.6, 4: 0.5, 6: 0.4, 9: 0.3},
        "inset": {2: 0.8},
    }
    for form, table in published.items():
        for count, bound in table.items():
            assert chosen.threshold(form, count) == bound
            assert chosen.looked_away(form, count, bound) is (form == "sequence")
            assert chosen.looked_away(form, count, bound - 1e-6)
            assert not chosen.looked_away(form, count, bound + 1e-6)


def test_thresholds_between():
    """5 of 4: 0.5 and 6: 0.4 is 0.45; 8 of 6: 0.4 and 9: 0.3 is 0.4 - 2/3 * 0.1."""
    table = Selection().collage
    assert interpolated(table, 5) == pytest.approx(0.45)
    assert interpolated(table, 8) == pytest.approx(0.4 - 0.2 / 3)
    assert interpolated(table, 20) == 0.3 and interpolated(table, 1) == 0.7
    assert interpolated({3: 0.5}, 2) == interpolated({3: 0.5}, 9) == 0.5


def judged(answer: str, truth: str, *, perplexity: float = 2.0, refusal=False, **settings):
    chosen = Selection(**settings)
    return unfit(chosen, answer=answer, truth=truth, perplexity=perplexity, refusal=refusal)


def test_perplexity_must_exceed():
    assert judged("red", "a circle", perplexity=1.1) == "too certain"
    assert judged("red", "green", perplexity=1.1001) is None
    assert judged("red", "green", perplexity=1.0, min_perplexity=None) is None


def test_length_ratio_both_ways():
    """3 and 9 characters are a ratio of 3, which is allowed; 3 and 10 are not."""
    assert judged("abc", "uvwxyzpqr") is None
    assert judged("abc", "uvwxyzpqrs") == "lengths too far apart"
    assert judged("uvwxyzpqrs", "abc") == "lengths too far apart"
    assert judged("uvwxyzpqrs", "abc", max_length_ratio=None) is None
    assert judged("uvwxyzpqrs", "abc", refusal=True) is None


def test_edit_distance():
    """One of ten characters differs: 0.1, which is enough; one of eleven is not."""
    assert judged("abcdefghij", "abcdefghiX") is None
    assert judged("abcdefghijk", "abcdefghijX") == "answers too alike"
    assert judged("abcdefghijk", "abcdefghijX", min_edit_distance=None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1.5}, "depth=1.5"),
        ({"collage": {}}, "collage needs"),
        ({"max_length_ratio": 0.5}, "max_length_ratio=0.5"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Selection(**settings)


def test_maps():
    """Two pictures of 2 x 2 and 1 x 3 tokens, in units of the largest weight, 0.4."""
    look = Look(
        pictures=(
            Seen(places=torch.tensor([1, 2, 3, 4]), boxes=grid(2, 2).flatten(0, 1).float()),
            Seen(
                places=torch.tensor([6, 7, 8, 9]),
                boxes=torch.cat([grid(1, 3).flatten(0, 1).float(), torch.full((1, 4), math.nan)]),
            ),
        ),
        attention=torch.tensor([9, 0.1, 0.2, 0.3, 0.4, 9, 0.05, 0.0, 0.1, 9]),
        perplexity=2.0,
    )
    assert attention_maps(look) == [[[0.25, 0.5], [0.75, 1.0]], [[0.125, 0.0, 0.25]]]
    # At most one cell: the sums 1.0 and 0.15.
    assert attention_maps(look, most=1) == [[[1.0]], [[0.15]]]


def test_maps_are_never_larger_than_asked():
    look = looking(torch.rand(length(1)), 1)
    (found,) = attention_maps(look, most=7)
    assert len(found) == 7 and {len(row) for row in found} == {7}
    assert max(max(row) for row in found) == 1.0
