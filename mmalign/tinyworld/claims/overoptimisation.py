"""The mass of the likeliest symbols falls before a judge's score does, and needs no judge."""

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

CONFIG, TASK, HELDOUT = "text/dpo", "arithmetic", 300
EVERY, STEPS = 6, 90
HARD = (
    "objective.beta=0.02",
    "training.learning_rate=2e-3",
    "training.schedule=constant",
    "source.batch_size=16",
)
"""Four times the config's rate, kept to the end, at a fifth of its beta: the run goes too far."""
ENTROPY, MASS = "entropy of the 10 likeliest symbols, bits", "their probability"
DROP = 0.002
"""By what share of its highest value the mass has to fall: more than it does while all is well."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Judge and indicators at every checkpoint, and where each of them would have stopped."""
    output = trained(
        CONFIG,
        folder / "dpo",
        seed=seed,
        overrides=[
            *HARD,
            f"source.data={{type: tinyworld, task: {TASK}, size: 2000, seed: {seed}}}",
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
    entropies, exact = _means(found, ENTROPY), _means(found, EXACT)
    return {
        "start": found[0],
        "stopped by the mass": found[before_the_fall(_means(found, MASS), drop=DROP)],
        "stopped by the entropy": found[entropies.index(max(entropies))],
        "best by the judge": found[exact.index(max(exact))],
        "last": found[-1],
    }


def before_the_fall(values: Sequence[float], *, drop: float) -> int:
    """The place of the last value before the first that is lower than the highest so far by more.

    Args:
        values: An indicator, evaluation by evaluation.
        drop: By more than what share of the highest so far; the last place where none is.
    """
    for place, value in enumerate(values):
        if value < (1 - drop) * max(values[: place + 1]):
            return place - 1
    return len(values) - 1


def _means(found: Sequence[Mapping[str, Sequence[float]]], metric: str) -> list[float]:
    return [sum(one[metric]) / len(one[metric]) for one in found]


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
        ENTROPY: per_output(bits, drawn.mask).tolist(),
        MASS: per_output(scores.top_k_mass, drawn.mask).tolist(),
    }


CLAIM = Claim(
    statement=(
        "DPO that goes too far shows it without a judge: stopped before the probability of the "
        "likeliest symbols falls, it is right as often as at the checkpoint that the judge would "
        "have chosen, and more often than before and than at the end."
    ),
    source="2410.11677",
    notes=(
        "Four times the config's rate, kept up, at a fifth of its beta. The drop of 0.002 was set "
        "on one other seed, at which the mass fell one checkpoint before the judge's score did; at "
        "others it fell too late. The entropy, the paper's sign for DPO, falls from the first "
        "update on here, while the model learns (what is to be known is one symbol), and rises as "
        "it breaks down, so its height is no place to stop at."
    ),
    run=run,
    objectives=("dpo",),
    comparisons=(
        Comparison(metric=MASS, arm="last", over="start", sign="lower"),
        Comparison(metric=EXACT, arm="stopped by the mass", over="start"),
        Comparison(metric=EXACT, arm="stopped by the mass", over="last"),
        Comparison(
            metric=EXACT,
            arm="stopped by the mass",
            over="best by the judge",
            sign="kept",
            margin=0.05,
        ),
    ),
    seeds=3,
)
