"""Contrastive corruption: the noise, what is said under it, and which pairs are made of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from mmalign import config
from mmalign.locate import configs
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.types import Output, Prompt
from mmalign.vision import LVLMPolicy
from mmalign.vision.completing import Decoding
from mmalign.vision.contrastive import Contrastive, Corrupting, kept_shares
from mmalign.vision.lvlm_inputs import process
from tests.vision.lvlm_models import FAMILIES, adapter_of

WORDS = Decoding(temperature=1.0, max_new_tokens=48)
DATA = TinyWorld(task="describe", split="heldout", size=16)


def builder(**changes: Any) -> Contrastive:
    return replace(Contrastive(data=DATA, decoding=WORDS, noise_step=700), **changes)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return LVLMPolicy().load()


def test_the_schedule() -> None:
    """Three of its values, from sums of betas over a grid of step h = 12 / 999.

    First: beta_0 = 1e-5 + 0.00499 sigmoid(-6) = 1e-5 + 0.00499 * 0.00247262 = 2.23384e-5.

    Last: by symmetry the mean sigmoid is 1/2, so the betas sum to 1000 (0.00499 / 2 + 1e-5), 2.505.
    log(1 - b) = -b - b^2 / 2 - ...; the squares sum to about 0.00499^2 * 1000 * 0.4171 = 0.01039
    (the integral of sigmoid^2 is that of sigmoid less the difference of its ends) and with the
    mixed terms 5e-5 to 0.01044; so log abar = -2.505 - 0.00522 = -2.5102 and abar = 0.0813.

    Step 500: the sigmoids of 501 points sum to (softplus(0.006) - softplus(-6)) / h, which is
    0.69368 * 83.25 = 57.75, and half of the two ends, 0.25: 58.00. The betas sum to
    0.28942 + 0.00501 = 0.29443, half their squares to 0.00021: abar = exp(-0.29464) = 0.7448.
    """
    shares = kept_shares()
    assert len(shares) == 1000 and bool((shares.diff() < 0).all())
    assert float(shares[0]) == pytest.approx(1 - 2.23384e-5, abs=1e-9)
    assert float(shares[500]) == pytest.approx(math.exp(-0.29464), abs=1e-4)
    assert float(shares[999]) == pytest.approx(math.exp(-2.5102), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_of_every_family_of_models(family: str) -> None:
    """What is added to a grey picture has the variance that the schedule says, and its copies
    along time are alike.

    ``x' = sqrt(k) x + sqrt(1 - k) e`` with k = abar_700, so (x' - sqrt(k) x) / sqrt(1 - k) has
    mean 0 and variance 1; over some thousand values to within 0.1.
    """
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    work = Corrupting(
        settings=builder(),
        rows=[],
        policy=Policy(adapter=adapter_of(model, processor), model=model),
        seed=0,
    )
    content = ({"role": "user", "content": [{"type": "image"}] * 4},)
    grey = tuple(Image.new("RGB", (32, 32), (128, level, 64)) for level in (0, 80, 160, 240))
    pixels = process(processor, Prompt(content=content, images=grey), row=0).per_image
    altered = work._noising(0, 0)(pixels)
    assert altered.keys() == pixels.keys()
    kept = float(kept_shares()[700])
    before, after = (p["pixel_values"].double() for p in (pixels, altered))
    noise = ((after - kept**0.5 * before) / (1 - kept) ** 0.5).flatten()
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.var()) - 1) < 0.1
    if "qwen" in family:
        rows = after.view(len(after), 3, processor.image_processor.temporal_patch_size, -1)
        assert torch.equal(rows[:, :, 0], rows[:, :, 1])
    others = {key for key in pixels if key != "pixel_values"}
    assert all(torch.equal(pixels[key], altered[key]) for key in others)
    assert torch.equal(work._noising(0, 0)(pixels)["pixel_values"], altered["pixel_values"])
    assert not torch.equal(work._noising(1, 0)(pixels)["pixel_values"], altered["pixel_values"])


def test_what_is_said_of_noise_is_less_true() -> None:
    """The exact judge gives the right answers 1, and the answers about noised pictures less the
    more noise there is. Both sides of a pair are asked about the clear picture."""
    means = []
    for step in (0, 700, 999):
        found = list(builder(noise_step=step, attempts=1).prepare(seed=0).candidates())
        assert [one.row for one in found] == list(range(16))
        pairs = [one.preference for one in found]
        prompts = [pair.prompt for pair in pairs]
        means.append(float(DescriptionJudge()(prompts, [p.rejected for p in pairs]).mean()))
        assert float(DescriptionJudge()(prompts, [p.chosen for p in pairs]).mean()) == 1.0
        clear = [prompt for prompt, _ in DATA.demonstrations()]
        assert all(a.images[0] == b.images[0] for a, b in zip(prompts, clear, strict=True))
        kept = [one for one in found if one.dropped is None]
        assert all(one.preference.chosen != one.preference.rejected for one in kept)
        assert {one.dropped for one in found} <= {None, "right answer"}
    assert means[0] > means[1] > means[2] and means[0] - means[2] > 0.3


def test_another_attempt_where_the_answer_is_right() -> None:
    """Little noise: most first answers are right, later attempts find other ones; and a row that
    has a pair is not asked again."""
    few = builder(noise_step=0, attempts=1).prepare(seed=0)
    many = builder(noise_step=0, attempts=4).prepare(seed=0)
    first, all_four = list(few.candidates()), list(many.candidates())
    kept = [sum(one.dropped is None for one in found) for found in (first, all_four)]
    assert kept[0] < kept[1]
    for before, after in zip(first, all_four, strict=True):
        attempt = after.preference.meta["attempt"]
        assert (attempt == 0) == (before.dropped is None)
        assert attempt == 3 or after.dropped is None


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    def plain(work: Corrupting, start: int) -> list[tuple[Output, str | None]]:
        return [(one.preference.rejected, one.dropped) for one in work.candidates(start)]

    data = TinyWorld(task="describe", size=6)
    whole = plain(builder(data=data).prepare(seed=4), 0)
    assert plain(builder(data=data, batch_size=2).prepare(seed=4), 3) == whole[3:]


def test_rows_of_no_use(policy: Policy) -> None:
    """No picture; and an answer that was cut at two tokens."""
    (prompt, right), *_ = DATA.demonstrations()
    rows: list[tuple[Prompt, Output]] = [(Prompt(content="how many"), "one"), (prompt, right)]
    settings = builder(decoding=Decoding(max_new_tokens=2))
    work = Corrupting(settings=settings, rows=rows, policy=policy, seed=0)
    assert [one.dropped for one in work.candidates()] == ["no picture", "unfinished answer"]
    pictured = Corrupting(
        settings=settings, rows=[(prompt, prompt.images[0])], policy=policy, seed=0
    )
    with pytest.raises(ValueError, match="row 0: the right answer is a picture"):
        list(pictured.candidates())


def test_shipped_settings() -> None:
    path = configs() / "vision" / "data" / "contrastive.yaml"
    found = config.load_builder("contrastive", path, ["data.size=2"])
    assert isinstance(found, Contrastive) and found.noise_step == 500
    assert len(found.prepare(seed=0)) == 2


@pytest.mark.parametrize("changes", [{"noise_step": 1000}, {"noise_step": -1}, {"attempts": 0}])
def test_wrong_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        builder(**changes)
