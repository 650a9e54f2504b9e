"""DPO lets the chosen outputs become unlikely; the likelihood term of dpo_sft does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from mmalign.claims import Claim, Comparison
from mmalign.data import write_preferences
from mmalign.rng import python_random
from mmalign.tinyworld.arithmetic import MAX_SLIP, MAX_VALUE
from mmalign.tinyworld.claims.common import EXACT, aligned, judged_exactly, start, trained
from mmalign.tinyworld.claims.likelihoods import CHOSEN, HELDOUT, displaced, heldout, scored
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Preference

CONFIG = "text/dpo"
TASK, RECORDED = "arithmetic", 200
HARD = ("training.learning_rate=1e-3", "training.steps=120", "source.batch_size=16")
"""Twice the config's rate and half its beta, each pair seen ten times."""
OBJECTIVES = {
    "dpo": "{type: dpo, beta: 0.05}",
    "dpo_sft": "{type: dpo_sft, beta: 0.05, nll_coefficient: 0.05}",
}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """How far held-out pairs' sides move under both objectives on the same pairs."""
    before, pairs = start(CONFIG), one_number_apart(heldout(TASK), seed=7)
    file = folder / "pairs.jsonl"
    if not file.exists():
        drawn = TASKS[TASK].preferences(size=RECORDED, seed=seed)
        write_preferences(file, one_number_apart(drawn, seed=seed))
    arms = {}
    for name, objective in OBJECTIVES.items():
        data = f"{{type: file, path: {file}}}"
        output = trained(
            CONFIG,
            folder / name,
            seed=seed,
            overrides=[f"objective={objective}", f"source.data={data}", *HARD],
        )
        policy = aligned(output)
        arms[name] = {
            **displaced(scored(policy, before, pairs)),
            **judged_exactly(policy, TASK, size=HELDOUT, seed=seed, graded=False),
        }
    return arms


def one_number_apart(pairs: Sequence[Preference], *, seed: int) -> list[Preference]:
    """The pairs with the chosen sum as the rejected one too, one result in it being wrong."""
    draw = python_random("one number apart", seed)
    return [replace(pair, rejected=_slipped(str(pair.chosen), draw)) for pair in pairs]


def _slipped(text: str, draw: Random) -> str:
    words = text.split()
    place = draw.choice([place for place, word in enumerate(words) if word == "="]) + 1
    right = int(words[place])
    near = range(max(0, right - MAX_SLIP), min(MAX_VALUE, right + MAX_SLIP) + 1)
    words[place] = str(draw.choice([number for number in near if number != right]))
    return " ".join(words)


CLAIM = Claim(
    statement=(
        "DPO makes the chosen outputs of held-out pairs less likely than they were, and dpo_sft "
        "keeps them from falling, and does better at the task."
    ),
    source="2405.16436, 2404.19733",
    notes=(
        "Both sides are one sum, a single result of which is wrong in the rejected one, and 200 "
        "pairs are seen ten times. On 2000 pairs seen once or less the chosen outputs fell at two "
        "seeds of three where the wrong number was carried on, and became likelier by 0.15 nats "
        "where it was not (one seed). On descriptions of pictures, at a rate of 2e-4 and a beta of "
        "0.1, they became likelier by 0.33 nats (one seed), and there was nothing to keep."
    ),
    run=run,
    objectives=("dpo", "dpo_sft"),
    comparisons=(
        Comparison(metric=CHOSEN, arm="dpo", over=0.0, sign="lower"),
        Comparison(metric=CHOSEN, arm="dpo_sft", over="dpo"),
        Comparison(metric=CHOSEN, arm="dpo_sft", over=0.0, sign="kept"),
        Comparison(metric=EXACT, arm="dpo_sft", over="dpo"),
    ),
    seeds=3,
)
