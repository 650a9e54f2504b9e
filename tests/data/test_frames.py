"""Clips as prompts."""

import re
from pathlib import Path

import pytest
from PIL import Image

from mmalign.data.frames import clip_prompt, evenly


@pytest.mark.parametrize(
    ("count", "num_frames", "expected"),
    [
        # Two halves of five: their middles are the third and the eighth.
        (10, 2, [2, 7]),
        # Parts 0..2.33, 2.33..4.67, 4.67..7 with middles at 1.17, 3.5, 5.83.
        (7, 3, [1, 3, 5]),
        (3, 3, [0, 1, 2]),
        (3, 8, [0, 1, 2]),
        (1, 1, [0]),
    ],
)
def test_frames_by_hand(count, num_frames, expected):
    assert evenly(count, num_frames) == expected


def test_times_stand_before_the_pictures():
    """Frames 2 and 7 of 10 at 4 a second: 0.5 s and 1.75 s, written with one digit."""
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(10)]
    prompt = clip_prompt(frames, "what ?", num_frames=2, frames_per_second=4.0, meta={"id": 3})
    assert [image.getpixel((0, 0))[0] for image in prompt.images] == [2, 7]
    (turn,) = prompt.content
    assert turn["content"] == [
        {"type": "text", "text": "0.5 s"},
        {"type": "image"},
        {"type": "text", "text": "1.8 s"},
        {"type": "image"},
        {"type": "text", "text": "what ?"},
    ]
    assert prompt.meta == {"id": 3}
    untimed = clip_prompt(frames, "what ?")
    assert len(untimed.images) == 10
    assert [part["type"] for part in untimed.content[0]["content"]] == ["image"] * 10 + ["text"]


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one frame; got count=0"):
        clip_prompt([], "what ?", num_frames=2)
    with pytest.raises(ValueError, match="num_frames=0"):
        evenly(5, 0)
    with pytest.raises(ValueError, match="frames_per_second must be greater than 0; got 0"):
        clip_prompt([Image.new("RGB", (8, 8))], "what ?", frames_per_second=0)


def test_the_guide_runs():
    guide = Path(__file__).resolve().parents[2] / "docs" / "guides" / "models.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), flags=re.DOTALL)
    exec(code, {})
