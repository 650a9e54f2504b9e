"""A reference averaged from two fine-tuned models gives PPO more room than one of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.data import write_samples
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, trained
from mmalign.tinyworld.tasks import TASKS

TASK, HELDOUT = "arithmetic", 400
SHOWN, WRONG = 200, 0.4
"""Demonstrations that a model is fine-tuned on, seen ten times, and how many of them are wrong."""
KL = 1.0
"""PPO's weight of the KL to the reference: enough to be felt."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """PPO from one fine-tuned LoRA, held to it or to its average with a second one."""
    stages = [_fine_tuned(folder, seed, number) for number in (1, 2)]
    references = {"start": "null", "soup": f"{{type: soup, of: [{stages[1] / 'model'}]}}"}
    arms = {f"sft {n}": _measured(stage, seed) for n, stage in enumerate(stages, start=1)}
    for name, reference in references.items():
        output = trained(
            "text/ppo",
            folder / name,
            seed=seed,
            overrides=[
                f"policy.lora.path={stages[0] / 'model'}",
                f"reference={reference}",
                f"objective.kl_coefficient={KL}",
                f"source.data.seed={seed}",
                "source.batch_size=64",
                "training.steps=20",
            ],
        )
        arms[f"ppo, held to the {name}"] = _measured(output, seed)
    return arms


def _fine_tuned(folder: Path, seed: int, number: int) -> Path:
    """A model that has learned the mistakes of its own demonstrations too."""
    file, own = folder / f"shown-{number}.jsonl", 10 * seed + number
    if not file.exists():
        shown = TASKS[TASK].demonstrations(size=SHOWN, seed=own, corruption=WRONG)
        write_samples(file, shown)
    return trained(
        "text/sft",
        folder / f"sft-{number}",
        seed=own,
        overrides=[f"source.data={{type: file, path: {file}}}", "training.learning_rate=2e-3"],
    )


def _measured(folder: Path, seed: int) -> Mapping[str, Sequence[float]]:
    return judged_exactly(aligned(folder), TASK, size=HELDOUT, seed=seed, graded=False)


CLAIM = Claim(
    statement=(
        "PPO that is held to the average of two fine-tuned models is right more often than PPO "
        "held to the one it starts from, at one weight of the KL and as many updates."
    ),
    source="SALSA, 2411.01798",
    notes=(
        "Each of the two models has learned its own 200 demonstrations by heart, two fifths of "
        "them wrong; their average forgets what only one has learned (right in 0.657 of 300 sums, "
        "the two in 0.537 and 0.527, one seed). Two models fine-tuned on right demonstrations "
        "differ too little: both references then gave 0.877 at a KL of 1 and 0.96 at one of 0.2 "
        "(one seed). At a KL of 0.5 the soup was ahead by 0.04."
    ),
    run=run,
    objectives=("sft", "ppo"),
    comparisons=(
        Comparison(metric=EXACT, arm="ppo, held to the soup", over="sft 1"),
        Comparison(metric=EXACT, arm="ppo, held to the soup", over="ppo, held to the start"),
    ),
    seeds=3,
)
