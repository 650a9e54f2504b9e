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
DPO = "{type: dpo, beta: 0.1}"
FAST, SLOW = 4e-4, 2e-4
ARMS = {
    "dpo": (DPO, FAST),
    "ln_dpo": ("{type: ln_dpo, beta: 5}", FAST),
    "dpo, half the rate": (DPO, SLOW),
    "simpo, half the rate": ("{type: simpo, beta: 2.5, gamma: 1.375}", SLOW),
}
PAIRS = {"ln_dpo": "dpo", "simpo, half the rate": "dpo, half the rate"}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Length and score of descriptions after each objective, on the same pairs."""
    file = folder / "pairs.jsonl"
    if not file.exists():
        write_preferences(file, longer_preferred(seed))
    arms = {"before": start(CONFIG)}
    for number, (name, (objective, rate)) in enumerate(ARMS.items()):
        output = trained(
            CONFIG,
            folder / f"run-{number}",
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
        "at half the rate, all wrote as long as before. At the full rate simpo, which nothing "
        "holds to where it started, was a little shorter than DPO and scored less (29.9 words and "
        "0.706 against 30.2 and 0.739, one seed); a margin of 0.5 did not help (30.0 and 0.655). "
        "Beside DPO at the full rate simpo at half of it would have looked well: that is the rate. "
        "Where pairs whose wrong answer is longer were left out instead, DPO and simpo at half the "
        "rate both improved (0.888 and 0.879 from 0.790 of 250 pictures, one seed) and wrote alike "
        "(25.7 and 25.8 words, from 24.3)."
    ),
    run=run,
    objectives=("dpo", "simpo", "ln_dpo"),
    comparisons=tuple(
        comparison
        for name, dpo in PAIRS.items()
        for comparison in (
            Comparison(metric=WORDS, arm=name, over=dpo, sign="lower"),
            Comparison(metric=SCORE, arm=name, over=dpo, sign="kept", margin=0.02),
        )
    ),
    seeds=3,
)
