"""Policy gradients on denoising paths: DDPO on a diffusion, Flow-GRPO on a flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import (
    EXACT,
    GRADED,
    aligned,
    judged_exactly,
    logged,
    start,
    trained,
)

CONFIGS = {"DDPO": "diffusion/diffusion_grpo", "Flow-GRPO": "diffusion/flow_grpo"}
SAME = (
    "training.steps=40",
    "training.learning_rate=3e-4",
    "source.batch_size=12",
    "objective.epsilon=1e-3",
)
MOVES = {"DDPO": "policy.steps=3", "Flow-GRPO": "policy.steps=4"}
HELDOUT = 300
DEVIATION = "mean distance of the ratio from 1 at the first update"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Both models before and after, drawing as they are trained."""
    arms = {}
    for name, config in CONFIGS.items():
        output = trained(
            config,
            folder / Path(config).name,
            seed=seed,
            overrides=[MOVES[name], *SAME],
        )
        before = judged_exactly(start(config, (MOVES[name],)), "draw", size=HELDOUT, seed=seed)
        after = judged_exactly(aligned(output), "draw", size=HELDOUT, seed=seed)
        arms[f"{name}, before"] = before
        arms[f"{name}, after"] = {**after, DEVIATION: logged(output, "ratio_deviation")[:1]}
    return arms


CLAIM = Claim(
    statement=(
        "Policy gradients on the moves of denoising raise the judge's score of what a diffusion "
        "(DDPO) and a flow (Flow-GRPO) draw, and the ratio is 1 before the first update."
    ),
    source="2305.13301, 2505.05470",
    notes=(
        "Few moves make a run a matter of minutes, and leave room: with 4 of them the flow starts "
        "at 0.715, with 10 at 0.781, the diffusion with 3 at 0.777, with 10 at 0.817 (one seed). "
        "While the diffusion's last move was trained too, DDPO did not rise in anything that was "
        "tried, and lost 0.006 [-0.013, +0.001] over three seeds: that move, of a deviation of "
        "0.03, decides next to nothing of the picture and had 99 % of the gradient's variance. "
        "Without it, 24 updates of 96 pictures in 2 moves gained 0.04, 0.03, 0.04 and 0.05 at "
        "rates of 3e-5, 1e-4, 2e-4 and 3e-4 (one seed)."
    ),
    run=run,
    objectives=("grpo",),
    comparisons=tuple(
        comparison
        for name in CONFIGS
        for comparison in (
            Comparison(metric=GRADED, arm=f"{name}, after", over=f"{name}, before"),
            Comparison(metric=EXACT, arm=f"{name}, after", over=f"{name}, before"),
            Comparison(
                metric=DEVIATION, arm=f"{name}, after", over=0.0, sign="within", margin=1e-4
            ),
        )
    ),
    seeds=3,
)
