"""Diffusion-DPO: recorded pairs raise a denoiser and a flow by their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import EXACT, GRADED, aligned, judged_exactly, start, trained

HELDOUT = 250
SHORT = ("training.steps=40", "policy.draws=2")
"""A third of the shipped configs' work."""
CONFIGS = {"noise prediction": "diffusion/diffusion_dpo", "flow": "diffusion/flow_dpo"}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Both models before and after training, by a third of what their configs do."""
    arms = {}
    for name, config in CONFIGS.items():
        output = trained(config, folder / Path(config).name, seed=seed, overrides=SHORT)
        for when, policy in (("before", start(config)), ("after", aligned(output))):
            arms[f"{name}, {when}"] = judged_exactly(policy, "draw", size=HELDOUT, seed=seed)
    return arms


CLAIM = Claim(
    statement=(
        "Diffusion-DPO on recorded pairs makes pictures that show what was asked for, for a model "
        "that predicts noise and for a flow."
    ),
    source="2311.12908",
    notes="The prompts' pictures are drawn without guidance, before and after.",
    run=run,
    objectives=("dpo",),
    comparisons=tuple(
        Comparison(metric=metric, arm=f"{name}, after", over=f"{name}, before")
        for name in CONFIGS
        for metric in (GRADED, EXACT)
    ),
    seeds=3,
)
