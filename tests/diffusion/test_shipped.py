"""The shipped models: they load, are small, know the task and still err."""

from __future__ import annotations

import json

import pytest

from mmalign import rng
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.tinyworld.data import TaskJudge, TinyWorld
from mmalign.tinyworld.pretrain.common import WEIGHTS, size_on_disk

SPECS = {
    "diffusion": DiffusionPolicy(model="tinyworld/diffusion", steps=10, guidance_scale=2.0),
    "flow": FlowPolicy(model="tinyworld/flow", steps=10, guidance_scale=2.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_competent_and_improvable(name: str) -> None:
    """The card's score, within three standard errors of 64 prompts (0.06 each)."""
    card = json.loads((WEIGHTS / name / "pretraining.json").read_text())
    prompts = TinyWorld(task="draw", split="heldout", size=64, seed=5).prompts()
    generators = [rng.generator("shipped", i) for i in range(len(prompts))]
    found = SPECS[name].load().sample(prompts, group_size=1, generators=generators)
    outputs = [o for o in found.outputs if o is not None]
    exact = TaskJudge()(prompts, outputs).mean().item()
    assert exact == pytest.approx(card["judge, held-out, 10 steps, guidance 2"], abs=0.18)
    assert 0.5 < card["judge, held-out, 10 steps, guidance 2"] < 0.85


def test_small_enough_to_ship() -> None:
    """Thirteen megabytes for both pipelines."""
    assert sum(size_on_disk(WEIGHTS / name) for name in SPECS) < 13e6
