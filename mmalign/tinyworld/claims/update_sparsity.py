"""Preferences change fewer weights than imitation does, at one rate and as many updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mmalign.claims import Claim, Comparison
from mmalign.diagnostics.sparsity import compare_models, total
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, start, trained

FULL = ("policy.lora=null", "training.learning_rate=2e-5", "training.steps=40")
"""Every weight is trained, at one rate."""
SAMPLED = {"grpo": ("source.batch_size=8",)}
"""Eight samples of eight prompts an update."""
IMITATION = "sft"
PREFERENCES = ("dpo", "simpo", "kto")
RL = "grpo"
HELDOUT = 300
UNCHANGED = "share of weights unchanged"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """How many weights each objective left as they were, and what it learned."""
    before = start(f"text/{IMITATION}", FULL)
    arms = {}
    for name in (IMITATION, *PREFERENCES, RL):
        settings = (*FULL, *SAMPLED.get(name, ()))
        policy = aligned(trained(f"text/{name}", folder / name, seed=seed, overrides=settings))
        for arm, dtype in ((name, torch.bfloat16), (_exactly(name), torch.float32)):
            found = total(compare_models(before.model, policy.model, dtype=dtype))
            arms[arm] = {UNCHANGED: [found.share]}
        arms[name] |= judged_exactly(policy, "arithmetic", size=HELDOUT, seed=seed, graded=False)
    return arms


def _exactly(name: str) -> str:
    return f"{name}, in float32"


CLAIM = Claim(
    statement=(
        "At one learning rate and as many updates, objectives of preferences and RL leave more "
        "weights as they were, in bfloat16, than imitation does; the number format has the larger "
        "part in it."
    ),
    source="2505.11711",
    notes=(
        "AdamW at 2e-5, 40 updates; an entry is unchanged where it differs by no more than 1e-5. "
        "Shares depend on the rate, the updates and the size of the weights; the paper's are 68 to "
        "96 % for preferences and RL and 6 to 15 % for imitation. The comparison in "
        "float32 is the trap: taken so, objectives of preferences leave fewer weights as they "
        "were than imitation does in bfloat16. grpo sees eight samples of eight prompts an update."
    ),
    run=run,
    objectives=(IMITATION, *PREFERENCES, RL),
    comparisons=(
        *(Comparison(metric=UNCHANGED, arm=n, over=IMITATION) for n in (*PREFERENCES, RL)),
        *(
            Comparison(metric=UNCHANGED, arm=_exactly(n), over=IMITATION, sign="lower")
            for n in (*PREFERENCES, RL)
        ),
        *(
            Comparison(metric=EXACT, arm=n, over=IMITATION, sign="kept", margin=0.05)
            for n in (*PREFERENCES, RL)
        ),
    ),
    seeds=3,
)
