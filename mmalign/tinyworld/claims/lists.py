"""Lists of four scored answers, as lists or as their best and worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import (
    EXACT,
    GRADED,
    aligned,
    judged_exactly,
    start,
    trained,
)

HELDOUT = 800
STEPS = 40
PAIRWISE = "dpo, best over worst"
ARMS = {
    PAIRWISE: (
        "text/pro",
        ["objective={type: dpo, beta: 0.1}", "source.selector={type: best_worst}"],
    ),
    "pro": ("text/pro", []),
}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Sums worked out after as many updates on the same lists, as pairs and as lists."""
    before = start("text/pro")
    arms = {"before": judged_exactly(before, "arithmetic", size=HELDOUT, seed=seed)}
    for number, (name, (config, changes)) in enumerate(ARMS.items()):
        output = trained(
            config,
            folder / f"run-{number}",
            seed=seed,
            overrides=[
                f"source.data={{type: tinyworld, task: arithmetic, size: 2000, seed: {seed}}}",
                f"training.steps={STEPS}",
                *changes,
            ],
        )
        arms[name] = judged_exactly(aligned(output), "arithmetic", size=HELDOUT, seed=seed)
    return arms


CLAIM = Claim(
    statement=(
        "Given lists of four scored answers, an objective on lists (pro) reaches a higher score in "
        "as many updates than DPO on the best and the worst of each."
    ),
    source="2306.17492",
    notes=(
        "The lists are sums with one or more wrong steps, scored by the share that is right. "
        "tpo_tree, tried on the same lists, ended where pairs did (0.829 exactly right); it has a "
        "claim of its own, about trees."
    ),
    run=run,
    objectives=("dpo", "pro"),
    comparisons=tuple(
        Comparison(metric=metric, arm="pro", over=PAIRWISE) for metric in (EXACT, GRADED)
    ),
    seeds=3,
)
