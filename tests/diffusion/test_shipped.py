"""The shipped models: they load, are small, know the task and still err."""

from __future__ import annotations

import pytest

from mmalign import rng
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.tinyworld.data import TaskJudge, TinyWorld
from mmalign.tinyworld.pretrain.common import WEIGHTS, size_on_disk

SPECS = {
    "diffusion": DiffusionPolicy(model="tinyworld/diffusion", steps=10, guidance_scale=1.0),
    "flow": FlowPolicy(model="tinyworld/flow", steps=10, guidance_scale=1.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_competent_and_improvable(name: str) -> None:
    """The card's score, within three standard errors of 64 prompts (0.06 each)."""
    policy = SPECS[name].load()
    prompts = TinyWorld(task="draw", split="heldout", size=64, seed=5).prompts()
    generators = [rng.generator("shipped", i) for i in range(len(prompts))]
    found = policy.sample(prompts, group_size=1, generators=generators)
    outputs = [o for o in found.outputs if o is not None]
    score = TaskJudge()(prompts, outputs).mean().item()
    assert 0.4 < score < 0.9


def test_small_enough_to_ship() -> None:
    """Eleven megabytes for both pipelines."""
    assert sum(size_on_disk(WEIGHTS / name) for name in SPECS) < 11e6
