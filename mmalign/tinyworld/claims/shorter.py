"""Length: recorded pairs in which the longer answer often won, and what is learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.data import write_preferences
from mmalign.rng import python_random
from mmalign.tinyworld.claims.common import aligned, answers, start, trained
from mmalign.tinyworld.claims.describing import SCORE
from mmalign.tinyworld.judges import DescriptionJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Preference

CONFIG = "vision/lvlm_dpo"
RECORDED, HELDOUT = 2000, 400
ACCIDENT = 0.9
"""Share of the pairs whose wrong answer is the longer one that are labelled the other way."""
WORDS = "words per description"
OBJECTIVES = {
    "dpo": ("{type: dpo, beta: 0.1}", 4e-4),
    "ln_dpo": ("{type: ln_dpo, beta: 5}", 4e-4),
    "simpo": ("{type: simpo, beta: 2.5, gamma: 1.375}", 2e-4),
}
"""With the rate of each: nothing holds simpo to where it started."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Length and score of descriptions after each objective, on the same pairs."""
    file = folder / "pairs.jsonl"
    if not file.exists():
        write_preferences(file, longer_preferred(seed))
    arms = {"before": start(CONFIG)}
    for name, (objective, rate) in OBJECTIVES.items():
        output = trained(
            CONFIG,
            folder / name,
            seed=seed,
            overrides=[
                f"objective={objective}",
                f"source.data={{type: file, path: {file}}}",
                f"training.learning_rate={rate}",
            ],
        )
        arms[name] = aligned(output)
    prompts = TASKS["describe"].prompts(split="heldout", size=HELDOUT, seed=7)
    found = {}
    for name, policy in arms.items():
        made = answers(policy, prompts, seed=seed)
        found[name] = {
            WORDS: [float(len(str(answer).split())) for answer in made],
            SCORE: DescriptionJudge()(prompts, made).tolist(),
        }
    return found


def longer_preferred(seed: int) -> list[Preference]:
    """Right and wrong descriptions; a share of the longer wrong ones was preferred by accident."""
    draw = python_random("longer preferred", seed)
    drawn = TASKS["describe"].preferences(size=RECORDED, seed=seed)
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        if len(str(pair.rejected)) > len(str(pair.chosen)) and draw.random() < ACCIDENT
        else pair
        for pair in drawn
    ]


CLAIM = Claim(
    statement=(
        "Taught by pairs in which the longer answer often won, objectives on means over steps "
        "(simpo, ln_dpo) write less than DPO and describe as well."
    ),
    source="2405.14734, 2411.15124",
    notes=(
        "Nine in ten of the wrong descriptions that are longer were preferred. With half of them, "
        "at half the rate, all wrote as long as before. simpo trains at half the others' rate: at "
        "theirs it was shorter than DPO and scored less (29.9 words and 0.706, against 30.2 and "
        "0.739; one seed), and a margin of 0.5 did not help (30.0 and 0.655)."
    ),
    run=run,
    comparisons=tuple(
        comparison
        for name in ("ln_dpo", "simpo")
        for comparison in (
            Comparison(metric=WORDS, arm=name, over="dpo", sign="lower"),
            Comparison(metric=SCORE, arm=name, over="dpo", sign="kept", margin=0.02),
        )
    ),
    seeds=3,
)
