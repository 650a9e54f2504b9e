"""The contrast of two networks' distributions, against whole tables of logits."""

import pytest
import torch

from mmalign import tiles
from mmalign.contrast import contrast_log_probs
from mmalign.head import Head, head_scores

SYMBOLS = torch.arange(3)


def test_by_hand():
    """(0.7, 0.2, 0.1)^2 / (0.3, 0.6, 0.1) = (1.6333, 0.0667, 0.1), 1.8 together."""
    head = Head(weight=torch.eye(3))
    positive, negative = (
        torch.tensor(p).log().expand(3, 3) for p in ([0.7, 0.2, 0.1], [0.3, 0.6, 0.1])
    )
    found = contrast_log_probs(positive, SYMBOLS, head, against=(negative, head), strength=1.0)
    assert found.exp().tolist() == pytest.approx([0.907407, 0.037037, 0.055556], abs=1e-6)
    # Whatever is added to all logits of one network changes nothing.
    shifted = contrast_log_probs(
        positive + 5, SYMBOLS, head, against=(negative - 3, head), strength=1.0
    )
    torch.testing.assert_close(found, shifted)


@pytest.mark.parametrize("tile_bytes", [2**23, 200])
def test_tiles_banned_symbols_and_landmarks(tile_bytes, monkeypatch):
    """Against a whole table; strength 0, and a network against itself, leave its log-probs."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", tile_bytes)
    draw = torch.Generator().manual_seed(0)
    states, other, weight, theirs = (
        torch.randn(shape, generator=draw) for shape in ((6, 4), (6, 4), (11, 4), (11, 4))
    )
    head = Head(weight=weight, banned=(0, 1, 2, 10), temperature=0.7)
    facing = Head(weight=theirs, banned=(0, 1, 2, 10), temperature=0.7)
    tokens = torch.tensor([3, 4, 5, 6, 9, 3])
    z = (states @ weight.T / 0.7) * 2.5 - (other @ theirs.T / 0.7) * 1.5
    z[:, [0, 1, 2, 10]] = -torch.inf
    expected = z.log_softmax(1)[torch.arange(6), tokens]
    found = contrast_log_probs(states, tokens, head, against=(other, facing), strength=1.5)
    torch.testing.assert_close(found, expected)
    own = head_scores(states, tokens, head)["log_probs"]
    for against, strength in (((other, facing), 0.0), ((states, head), 3.0)):
        same = contrast_log_probs(states, tokens, head, against=against, strength=strength)
        torch.testing.assert_close(same, own, rtol=1e-4, atol=1e-5)


def test_two_vocabularies_are_refused():
    states = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="3 symbols, the other 2"):
        contrast_log_probs(
            states,
            SYMBOLS[:1],
            Head(weight=torch.eye(3)),
            against=(states, Head(weight=torch.eye(3)[:2])),
            strength=1.0,
        )
