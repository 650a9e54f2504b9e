"""FiFA: a twentieth of a noisy preference set, chosen, against all of it and a random twentieth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import (
    EXACT,
    GRADED,
    aligned,
    built,
    judged_exactly,
    start,
    trained,
)

CONFIG = "diffusion/diffusion_dpo"
ROWS, SHARE, FLIPPED = 2000, 0.05, 0.3
HELDOUT = 300
FULL, QUARTER = 40, 10
"""Updates on all pairs, and on a twentieth of them."""
SAME = ("source.batch_size=24", "policy.draws=2", "training.warmup_steps=2")


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """What the model draws after each of the three sets."""
    noisy = f"{{type: tinyworld, task: draw, size: SIZE, seed: {seed}, flip_rate: {FLIPPED}}}"
    chosen = built(
        "fifa",
        folder / "fifa.jsonl",
        seed=seed,
        shipped="diffusion/data/fifa",
        settings=[
            f"data={noisy.replace('SIZE', str(ROWS))}",
            f"share={SHARE}",
            "dropped_pictures=false",
        ],
    )
    sets = {
        f"all pairs, {FULL} updates": (noisy.replace("SIZE", str(ROWS)), FULL),
        # The set is drawn row by row, so its first rows are as good as any.
        f"a random 5%, {QUARTER} updates": (
            noisy.replace("SIZE", str(round(SHARE * ROWS))),
            QUARTER,
        ),
        f"FiFA's 5%, {QUARTER} updates": (f"{{type: file, path: {chosen}}}", QUARTER),
    }
    arms = {"before": judged_exactly(start(CONFIG), "draw", size=HELDOUT, seed=seed)}
    for number, (name, (data, steps)) in enumerate(sets.items()):
        output = trained(
            CONFIG,
            folder / f"run-{number}",
            seed=seed,
            overrides=[f"source.data={data}", f"training.steps={steps}", *SAME],
        )
        arms[name] = judged_exactly(aligned(output), "draw", size=HELDOUT, seed=seed)
    return arms


CLAIM = Claim(
    statement=(
        "Where three labels of ten are wrong, the twentieth of the pairs that FiFA chooses beats a "
        "random twentieth and reaches in a quarter of the updates what all pairs do."
    ),
    source="2410.10166",
    notes=(
        "The proxy is the tiny CLIP and the prompts are compared by their words. The random "
        "twentieth is the first rows of the same set, its labels as noisy."
    ),
    run=run,
    objectives=("dpo",),
    comparisons=tuple(
        comparison
        for metric in (GRADED, EXACT)
        for comparison in (
            Comparison(
                metric=metric,
                arm=f"FiFA's 5%, {QUARTER} updates",
                over=f"a random 5%, {QUARTER} updates",
            ),
            Comparison(
                metric=metric,
                arm=f"FiFA's 5%, {QUARTER} updates",
                over=f"all pairs, {FULL} updates",
                sign="kept",
                margin=0.02,
            ),
        )
    ),
    seeds=3,
)
