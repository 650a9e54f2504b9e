"""The entropy of the likeliest symbols turns down where a judge's score does, without a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mmalign import rng
from mmalign.checkpoint import Checkpoint, folder_name
from mmalign.claims import Claim, Comparison
from mmalign.concentration_watch import TOP_K
from mmalign.diagnostics.concentration import per_output, top_k_entropy_bits
from mmalign.policy import Policy
from mmalign.rewards import judged
from mmalign.tinyworld.claims.common import EXACT, start, trained
from mmalign.tinyworld.data import TaskJudge
from mmalign.tinyworld.tasks import TASKS

CONFIG, TASK, HELDOUT = "text/dpo", "arithmetic", 200
EVERY, STEPS = 10, 80
HARD = ("training.learning_rate=2e-3", "training.schedule=constant", "source.batch_size=16")
"""Four times the config's rate, kept to the end: a run that goes too far."""
CONCENTRATION = "entropy of the 10 likeliest symbols, bits"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Judge and indicator at every checkpoint; stopped at the indicator's height, or not at all."""
    output = trained(
        CONFIG,
        folder / "dpo",
        seed=seed,
        overrides=[
            *HARD,
            f"training.steps={STEPS}",
            f"training.checkpoint_every={EVERY}",
            f"training.keep_checkpoints={STEPS}",
        ],
    )
    policy = start(CONFIG)
    found = [_measured(policy, seed)]
    for step in range(EVERY, STEPS + 1, EVERY):
        _restore(policy, Checkpoint(folder=output / "checkpoints" / folder_name(step), step=step))
        found.append(_measured(policy, seed))
    entropies = [sum(m[CONCENTRATION]) / HELDOUT for m in found]
    return {
        "start": found[0],
        "stopped by the indicator": found[entropies.index(max(entropies))],
        "last": found[-1],
    }


@torch.no_grad()
def _restore(policy: Policy, checkpoint: Checkpoint) -> None:
    tensors = checkpoint.tensors("policy")
    for name, parameter in policy.trainable().items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def _measured(policy: Policy, seed: int) -> Mapping[str, Sequence[float]]:
    prompts = TASKS[TASK].prompts(split="heldout", size=HELDOUT, seed=7)
    generators = [rng.generator(seed, "evaluate", i) for i in range(HELDOUT)]
    drawn = policy.sample(prompts, group_size=1, generators=generators)
    scores = policy.scores(drawn, want=TOP_K)
    assert scores.top_k_mass is not None and scores.top_k_entropy is not None
    bits = top_k_entropy_bits(scores.top_k_mass, scores.top_k_entropy)
    outputs = [output for output in drawn.outputs if output is not None]
    return {
        EXACT: judged(TaskJudge(), prompts, outputs).tolist(),
        CONCENTRATION: per_output(bits, drawn.mask).tolist(),
    }


CLAIM = Claim(
    statement=(
        "DPO that is stopped where the entropy of the likeliest symbols is highest is right more "
        "often than DPO that goes on."
    ),
    source="2410.11677",
    run=run,
    comparisons=(
        Comparison(metric=CONCENTRATION, arm="last", over="stopped by the indicator", sign="lower"),
        Comparison(metric=EXACT, arm="stopped by the indicator", over="last"),
    ),
    seeds=3,
)
