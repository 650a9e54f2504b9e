"""How many pairs the model ranks right after DPO, and how many the exact optimum would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.diagnostics.ranking import idealised_score, ranked_right
from mmalign.tinyworld.claims.common import aligned, start, trained
from mmalign.tinyworld.claims.likelihoods import scored

RIGHT = "share of held-out pairs ranked right"
CONFIG = "vision/ar_dpo"
BETA = 0.1
SHORT = ("training.steps=30", "source.batch_size=16")
BEFORE, AFTER, OPTIMUM = "before", "dpo", "exact optimum"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Ranking accuracy before and after, and of the exact optimum, on the same held-out pairs."""
    data = f"source.data={{type: tinyworld, task: draw, size: 4000, seed: {seed}}}"
    before = start(CONFIG)
    objective = f"objective={{type: dpo, beta: {BETA}}}"
    output = trained(CONFIG, folder / "dpo", seed=seed, overrides=[data, objective, *SHORT])
    found = scored(aligned(output), before, "draw")
    counts = (found.n_w, found.n_l)
    optimum = idealised_score(found.ref_s_w, found.ref_s_l, beta=BETA) > 0
    sides = {
        BEFORE: ranked_right(found.ref_s_w, found.ref_s_l, *counts),
        AFTER: ranked_right(found.s_w, found.s_l, *counts),
        OPTIMUM: optimum,
    }
    return {name: {RIGHT: right.double().tolist()} for name, right in sides.items()}


CLAIM = Claim(
    statement=(
        "DPO raises the share of pairs that a model ranks right, and leaves it below what the "
        "exact optimum of its objective would rank right."
    ),
    source="2405.19534",
    run=run,
    comparisons=(
        Comparison(metric=RIGHT, arm=AFTER, over=OPTIMUM, sign="lower"),
        Comparison(metric=RIGHT, arm=AFTER, over=BEFORE),
    ),
    seeds=3,
)
