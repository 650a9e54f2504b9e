"""DPO lets the chosen outputs become unlikely; the likelihood term of dpo_sft does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, start, trained
from mmalign.tinyworld.claims.likelihoods import CHOSEN, HELDOUT, displaced, heldout, scored

CONFIG = "text/dpo"
TASK = "arithmetic"
HARD = ("training.learning_rate=2e-3", "training.steps=60", "source.batch_size=16")
"""Four times the config's rate, at half its beta."""
OBJECTIVES = {
    "dpo": "{type: dpo, beta: 0.05}",
    "dpo_sft": "{type: dpo_sft, beta: 0.05, nll_coefficient: 0.05}",
}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """How far held-out pairs' sides move under both objectives on the same pairs."""
    before, pairs = start(CONFIG), heldout(TASK)
    arms = {}
    for name, objective in OBJECTIVES.items():
        data = f"{{type: tinyworld, task: {TASK}, size: 2000, seed: {seed}}}"
        output = trained(
            CONFIG,
            folder / name,
            seed=seed,
            overrides=[f"objective={objective}", f"source.data={data}", *HARD],
        )
        policy = aligned(output)
        arms[name] = {
            **displaced(scored(policy, before, pairs)),
            **judged_exactly(policy, TASK, size=HELDOUT, seed=seed, graded=False),
        }
    return arms


CLAIM = Claim(
    statement=(
        "DPO makes the chosen outputs of held-out pairs less likely than they were, and dpo_sft "
        "keeps them from falling, and does better at the task."
    ),
    source="2405.16436, 2404.19733",
    notes=(
        "Four times the config's rate at half its beta: the chosen outputs fell at two seeds of "
        "three. At a rate of 2e-4 and a beta of 0.1 DPO on descriptions of pictures made them "
        "likelier, by 0.33 nats (one seed), and there was nothing to keep."
    ),
    run=run,
    objectives=("dpo", "dpo_sft"),
    comparisons=(
        Comparison(metric=CHOSEN, arm="dpo", over=0.0, sign="lower"),
        Comparison(metric=CHOSEN, arm="dpo_sft", over="dpo"),
        Comparison(metric=CHOSEN, arm="dpo_sft", over=0.0, sign="kept"),
        Comparison(metric=EXACT, arm="dpo_sft", over="dpo"),
    ),
    seeds=3,
)
