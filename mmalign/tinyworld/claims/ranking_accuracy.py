"""How many pairs the model ranks right after DPO, and how many the exact optimum would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import aligned, start, trained
from mmalign.tinyworld.claims.likelihoods import IDEALISED, RIGHT, ranked, scored

BETA = 0.1
RUNS = {
    "text": ("text/dpo", "arithmetic", ("training.steps=60",)),
    "vision-language": ("vision/lvlm_dpo", "describe", ("training.steps=40",)),
}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Ranking accuracy before and after, and of the exact optimum, on the same held-out pairs."""
    arms = {}
    for name, (config, task, overrides) in RUNS.items():
        data = f"source.data={{type: tinyworld, task: {task}, size: 2000, seed: {seed}}}"
        before = start(config)
        output = trained(
            config,
            folder / name,
            seed=seed,
            overrides=[data, f"objective={{type: dpo, beta: {BETA}}}", *overrides],
        )
        found = ranked(scored(aligned(output), before, task), beta=BETA)
        arms[f"{name}, dpo"] = {RIGHT: found[RIGHT]}
        arms[f"{name}, exact optimum"] = {RIGHT: found[IDEALISED]}
        arms[f"{name}, before"] = {RIGHT: ranked(scored(before, before, task), beta=BETA)[RIGHT]}
    return arms


CLAIM = Claim(
    statement=(
        "After DPO fewer pairs are ranked right than the exact optimum of its objective ranks "
        "right."
    ),
    source="2405.19534",
    run=run,
    comparisons=tuple(
        Comparison(metric=RIGHT, arm=f"{name}, dpo", over=f"{name}, exact optimum", sign="lower")
        for name in RUNS
    ),
    seeds=3,
)
