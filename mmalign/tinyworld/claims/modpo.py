"""MODPO: runs over the weights of two objectives trace a front between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.protocols import RewardModel
from mmalign.rewards.text import LengthReward
from mmalign.text import TextPolicy
from mmalign.tinyworld.claims.common import aligned, fresh, scores, trained
from mmalign.tinyworld.data import TaskJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Prompt

WEIGHTS = (0.2, 0.8)
"""Of brevity; exactness has the rest."""
PROMPTS = 600
EXACT = "share of sums worked out rightly"
BRIEF = "brevity (0 for two words, -1 for two more)"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """One run for each weight."""
    prompts = TASKS["arithmetic"].prompts(split="heldout", size=PROMPTS, seed=7)
    judges: Mapping[str, tuple[Sequence[Prompt], RewardModel]] = {
        EXACT: (prompts, TaskJudge()),
        BRIEF: (prompts, LengthReward(target=2)),
    }
    arms = {"before": scores(fresh(TextPolicy(max_new_tokens=32)), judges, seed=seed)}
    for weight in WEIGHTS:
        output = trained(
            "text/modpo",
            folder / f"{weight}",
            seed=seed,
            overrides=[
                f"objective.weights=[{weight}, {1 - weight:.1f}]",
                f"source.data.seed={seed}",
            ],
        )
        arms[f"brevity {weight}"] = scores(aligned(output), judges, seed=seed)
    return arms


CLAIM = Claim(
    statement=(
        "One preference set and a frozen reward of another objective trace a front: the more "
        "weight an objective has, the more of it comes out, and the less of the other."
    ),
    source="2310.03708",
    run=run,
    comparisons=tuple(
        Comparison(metric=metric, arm=f"brevity {arm}", over=f"brevity {over}")
        for metric, order in ((BRIEF, WEIGHTS[::-1]), (EXACT, WEIGHTS))
        for arm, over in pairwise(order)
    ),
    seeds=1,
)
