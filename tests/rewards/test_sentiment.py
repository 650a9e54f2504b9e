import pytest
import torch
from PIL import Image

from mmalign import registry
from mmalign.rewards import judged
from mmalign.rewards.sentiment import SentimentReward
from mmalign.types import Prompt

PROMPT = Prompt(content="What is a lamp?")


def test_order_and_range() -> None:
    """The lexicon rates good 1.9, horrible -2.5, and lamp not at all; a score is s / sqrt(s^2+15).

    Hence 1.9 / sqrt(3.61 + 15) = 0.4404, and -2.5 / sqrt(6.25 + 15) = -0.5423.
    """
    pytest.importorskip("vaderSentiment", reason="needs vaderSentiment (extra real)")
    texts = ["The lamp is good.", "The lamp is horrible.", "The lamp is on the table."]
    scores = judged(SentimentReward(), [PROMPT] * 3, texts)
    torch.testing.assert_close(scores, torch.tensor([0.4404, -0.5423, 0.0]), atol=1e-4, rtol=0)


def test_pictures_are_refused() -> None:
    pytest.importorskip("vaderSentiment", reason="needs vaderSentiment (extra real)")
    with pytest.raises(ValueError, match="output 1 is a Image"):
        SentimentReward()([PROMPT] * 2, ["fine", Image.new("RGB", (2, 2))])


def test_registered() -> None:
    assert registry.resolve("rewards", "sentiment") is SentimentReward
