"""Preferences change fewer weights than imitation does, at one rate and as many updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mmalign.claims import Claim, Comparison
from mmalign.diagnostics.sparsity import compare_models, total
from mmalign.tinyworld.claims.common import aligned, judged_exactly, start, trained

FULL = ("policy.lora=null", "training.learning_rate=2e-5", "training.steps=40")
"""Every weight is trained, at one rate."""
ARMS = {"sft": "text/sft", "dpo": "text/dpo", "simpo": "text/simpo", "kto": "text/kto"}
HELDOUT = 300
COARSE, FINE = "share of weights unchanged, bfloat16", "share of weights unchanged, float32"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """How many weights each objective left as they were, and what it learned."""
    before = start(ARMS["sft"], FULL)
    arms = {}
    for name, config in ARMS.items():
        policy = aligned(trained(config, folder / name, seed=seed, overrides=FULL))
        arms[name] = {
            metric: [total(compare_models(before.model, policy.model, dtype=dtype)).share]
            for metric, dtype in ((COARSE, torch.bfloat16), (FINE, torch.float32))
        }
        arms[name] |= judged_exactly(policy, "arithmetic", size=HELDOUT, seed=seed, graded=False)
    return arms


CLAIM = Claim(
    statement=(
        "At one learning rate and as many updates, objectives of preferences leave more weights "
        "as they were than imitation does."
    ),
    source="2505.11711",
    run=run,
    comparisons=tuple(
        Comparison(metric=COARSE, arm=arm, over="sft") for arm in ("dpo", "simpo", "kto")
    ),
    seeds=3,
)
