"""A reference averaged from two fine-tuned models gives PPO more room than one of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, trained

HELDOUT = 300
KL = 0.2
"""PPO's weight of the KL to the reference: enough to be felt."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """PPO from one fine-tuned LoRA, held to it or to its average with a second one."""
    stages = [
        trained(
            "text/sft",
            folder / f"sft-{number}",
            seed=10 * seed + number,
            overrides=[
                f"source.data={{type: tinyworld, task: arithmetic, size: 2000, seed: {number}}}",
                "training.steps=20",
            ],
        )
        / "model"
        for number in (1, 2)
    ]
    references = {"start": "null", "soup": f"{{type: soup, of: [{stages[1]}]}}"}
    arms = {"sft": _measured(stages[0].parent, seed)}
    for name, reference in references.items():
        output = trained(
            "text/ppo",
            folder / name,
            seed=seed,
            overrides=[
                f"policy.lora.path={stages[0]}",
                f"reference={reference}",
                f"objective.kl_coefficient={KL}",
                "training.steps=30",
            ],
        )
        arms[name] = _measured(output, seed)
    return arms


def _measured(folder: Path, seed: int) -> Mapping[str, Sequence[float]]:
    return judged_exactly(aligned(folder), "arithmetic", size=HELDOUT, seed=seed, graded=False)


CLAIM = Claim(
    statement=(
        "PPO that is held to the average of two fine-tuned models is right more often than PPO "
        "held to the one it starts from, at one weight of the KL."
    ),
    source="SALSA, 2411.01798",
    run=run,
    comparisons=(
        Comparison(metric=EXACT, arm="soup", over="sft"),
        Comparison(metric=EXACT, arm="soup", over="start"),
    ),
    seeds=3,
)
