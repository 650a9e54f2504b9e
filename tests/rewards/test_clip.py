"""ClipReward over a random open_clip model on disk, and over the shipped one."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from mmalign.rewards import judged
from mmalign.rewards.clip import ClipReward
from mmalign.tinyworld.pretrain.clip import build_model
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Prompt

TEXTS = ("a red circle", "two large blue squares", "a green triangle")
PROMPTS = [Prompt(content=text) for text in TEXTS]


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in open_clip's layout."""
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tensors = {k: v.contiguous() for k, v in build_model(path).state_dict().items()}
    save_file(tensors, str(path / "open_clip_model.safetensors"))
    return path


def test_is_the_cosine_of_open_clip(folder: Path) -> None:
    """Against open_clip used by hand: its own transform, tokenizer and features."""
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    network.eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        seen = network.encode_image(torch.stack([transform(p) for p in PICTURES]))
        said = network.encode_text(tokenize(list(TEXTS)))
    found = ClipReward(model=str(folder))(PROMPTS, PICTURES)
    torch.testing.assert_close(found, cosine_similarity(seen, said, dim=-1))
    assert found.dtype == torch.float32 and not found.requires_grad
    assert bool((found.abs() <= 1).all()) and len(found.unique()) == 3


def test_rows_are_judged_apart(folder: Path) -> None:
    whole = ClipReward(model=str(folder))(PROMPTS, PICTURES)
    single = ClipReward(model=str(folder), batch_size=1)(PROMPTS, PICTURES)
    torch.testing.assert_close(whole, single)
    backwards = ClipReward(model=str(folder))(PROMPTS[::-1], PICTURES[::-1])
    torch.testing.assert_close(whole, backwards.flip(0))


def test_reads_conversations(folder: Path) -> None:
    """The user's words count, as a string or as parts; the system's do not."""
    turns = (
        {"role": "system", "content": "draw"},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]},
    )
    reward = ClipReward(model=str(folder))
    expected = reward(PROMPTS[:1], PICTURES[:1])
    assert torch.equal(reward([Prompt(content=turns)], PICTURES[:1]), expected)
    plain = Prompt(content=({"role": "user", "content": TEXTS[0]},))
    assert torch.equal(reward([plain], PICTURES[:1]), expected)


def test_a_clip_is_its_frames(folder: Path) -> None:
    """The mean of what its frames would get; its neighbours get what they get without it."""
    reward = ClipReward(model=str(folder))
    each = reward([PROMPTS[0]] * 3, PICTURES)
    found = reward([PROMPTS[0], PROMPTS[1]], [tuple(PICTURES), PICTURES[1]])
    torch.testing.assert_close(found[0], each.mean())
    torch.testing.assert_close(found[1:], reward(PROMPTS[1:2], PICTURES[1:2]))


def test_no_rows(folder: Path) -> None:
    assert ClipReward(model=str(folder))([], []).shape == (0,)


def test_misuse(folder: Path, tmp_path: Path) -> None:
    reward = ClipReward(model=str(folder))
    with pytest.raises(ValueError, match="3 prompts for 1 pictures"):
        reward(PROMPTS, PICTURES[:1])
    with pytest.raises(ValueError, match="output 0 is a str"):
        reward(PROMPTS[:1], ["a red circle"])
    with pytest.raises(ValueError, match="prompt 0 has no text"):
        reward([Prompt(content=" ")], PICTURES[:1])
    with pytest.raises(ValueError, match="open_clip cannot load"):
        ClipReward(model=str(tmp_path))(PROMPTS, PICTURES)
    with pytest.raises(ValueError, match="open_clip cannot load 'no-such-model'"):
        ClipReward(model="no-such-model")(PROMPTS, PICTURES)


def test_shipped_model_tells_right_from_nearly_right() -> None:
    """On held-out prompts, one change away; guessing would give a half."""
    shown = TASKS["draw"].preferences(size=100, seed=0, split="heldout")
    prompts = [pair.prompt for pair in shown]
    reward = ClipReward()
    right = judged(reward, prompts, [pair.chosen for pair in shown])
    wrong = judged(reward, prompts, [pair.rejected for pair in shown])
    assert (right > wrong).float().mean() > 0.75
