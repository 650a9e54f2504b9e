"""Flipped labels: objectives that expect them against DPO, which does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, logged, start, trained

CONFIG = "text/dpo"
HELDOUT = 800
BETA = 5
"""High, so that a fifth of wrong labels ends DPO's margin at log 4 / 5 nats."""
DPO = f"{{type: dpo, beta: {BETA}}}"
SAME = ("training.steps=80", "training.learning_rate=1e-3")
RATES = (0.2, 0.4)
RECOVERED = "share of flipped labels that it infers"
SETTLED = 20
"""Last updates, over which the inferred share is averaged: each has seen a few hundred labels."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Sums worked out after training on pairs of which a share is turned round."""
    arms = {"before": judged_exactly(start(CONFIG), "arithmetic", size=HELDOUT, seed=seed)}
    for rate in RATES:
        data = f"{{type: tinyworld, task: arithmetic, size: 4000, seed: {seed}, flip_rate: {rate}}}"
        objectives = {
            "dpo": DPO,
            "rdpo": f"{{type: rdpo, beta: {BETA}, label_smoothing: {rate}}}",
            "latent_em": f"{{type: latent_em, of: {DPO}, reliability: 0.75, rate: 0.2}}",
        }
        for name, objective in objectives.items():
            output = trained(
                CONFIG,
                folder / f"{name}-{rate}",
                seed=seed,
                overrides=[f"source.data={data}", f"objective={objective}", *SAME],
            )
            arm = judged_exactly(aligned(output), "arithmetic", size=HELDOUT, seed=seed)
            if name == "latent_em":
                arm[RECOVERED] = [1 - fmean(logged(output, "reliability")[-SETTLED:])]
            arms[f"{name}, {rate:.0%} flipped"] = arm
    return arms


CLAIM = Claim(
    statement=(
        "Where a fifth or two fifths of the labels are turned round, rdpo (told how many) and "
        "latent_em (not told) beat DPO, and latent_em finds out how many."
    ),
    source="2403.00409, 2509.24159",
    notes=(
        "Sums in text; rdpo is told the share that is flipped. The beta is what makes labels "
        "matter: with a fifth of them wrong, DPO's loss is least at a margin of log 4 / beta "
        "nats. At a beta of 0.5 and 100 updates neither dpo nor rdpo had come that far, both did "
        "alike, and better than here (0.915 and 0.920 of 400 sums at a fifth, one seed): a low "
        "beta is a remedy too. latent_em starts from a reliability of 0.75 and moves by a fifth of "
        "the way each batch; from 0.9 and by a tenth it inferred 26 % of 40 % after 50 updates. "
        "What it inferred is averaged over 20 updates; at one seed the last value alone was "
        "0.050 and 0.055 too low."
    ),
    run=run,
    objectives=("dpo", "rdpo", "latent_em"),
    comparisons=tuple(
        comparison
        for rate in RATES
        for other in [f", {rate:.0%} flipped"]
        for comparison in (
            Comparison(metric=EXACT, arm="rdpo" + other, over="dpo" + other),
            Comparison(metric=EXACT, arm="latent_em" + other, over="dpo" + other),
            Comparison(
                metric=RECOVERED, arm="latent_em" + other, over=rate, sign="within", margin=0.05
            ),
        )
    ),
    seeds=3,
)
