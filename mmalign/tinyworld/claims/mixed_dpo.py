"""Mixed DPO: recorded and online pairs in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import aligned, fresh, trained
from mmalign.tinyworld.claims.describing import COVERED, INVENTED, SCORE, described
from mmalign.vision import LVLMPolicy

ROWS = 1200
STEPS = 100
TOKENS = 48
RECORDED = f"{{type: tinyworld, task: describe, size: {ROWS}, seed: SEED}}"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Recorded pairs, pairs of two samples that an annotator ranks, and both in every batch."""
    data = RECORDED.replace("SEED", str(seed))
    recorded = f"{{type: preferences, data: {data}, batch_size: SIZE}}"
    online = (
        f"{{type: rollouts, data: {data}, reward: {{type: tinyworld}}, num_generations: 2, "
        "selector: {type: best_worst}, batch_size: SIZE}"
    )
    sources = {
        "offline": recorded.replace("SIZE", "32"),
        "online": online.replace("SIZE", "32"),
        "mixed": "{type: mixed, parts: ["
        + ", ".join(part.replace("SIZE", "16") for part in (recorded, online))
        + "]}",
    }
    arms = {"before": fresh(LVLMPolicy(max_new_tokens=TOKENS))}
    for name, source in sources.items():
        output = trained(
            "vision/lvlm_dpo",
            folder / name,
            seed=seed,
            overrides=[f"source={source}", f"training.steps={STEPS}", "objective.beta=0.1"],
        )
        arms[name] = aligned(output)
    return described(arms, seed=seed)


CLAIM = Claim(
    statement=(
        "Mixing recorded pairs with online ones gives better descriptions than either alone, "
        "covers more of the picture than recorded pairs and invents less than online ones."
    ),
    source="2407.02477",
    notes=(
        "Recorded pairs are right and wrong descriptions, online ones two samples ranked by the "
        "exact judge. After 40 updates recorded pairs alone were ahead of both others."
    ),
    run=run,
    objectives=("dpo",),
    comparisons=(
        Comparison(metric=SCORE, arm="mixed", over="offline"),
        Comparison(metric=SCORE, arm="mixed", over="online"),
        Comparison(metric=COVERED, arm="mixed", over="offline"),
        Comparison(metric=INVENTED, arm="mixed", over="online", sign="lower"),
    ),
    seeds=3,
)
