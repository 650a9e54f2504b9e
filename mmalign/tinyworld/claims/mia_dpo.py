"""MIA-DPO: multi-image accuracy from single-image data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.rng import python_random
from mmalign.tinyworld.claims.common import aligned, built, fresh, scores, trained
from mmalign.tinyworld.judges import AnswerJudge
from mmalign.tinyworld.language import NUMBERS
from mmalign.tinyworld.tasks import TASKS, conversation
from mmalign.types import Prompt
from mmalign.vision import LVLMPolicy

ROWS = 4000
HELDOUT = 600
SINGLE = "accuracy on single images"
MULTI = "accuracy on multi-image questions"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The model as it is, after MIA-DPO, and after DPO with answers of other rows as rejected."""
    pairs = built(
        "mia-dpo",
        folder / "pairs.jsonl",
        seed=seed,
        shipped="vision/data/mia_dpo",
        settings=[f"data.size={ROWS}", f"data.seed={seed}", "formats.collage=0.0", "map_size=0"],
    )
    arms = {"before": fresh(LVLMPolicy(max_new_tokens=8))}
    for name, file in (("MIA-DPO", pairs), ("random rejected", _rejected_at_random(pairs, seed))):
        output = trained(
            "vision/lvlm_mia_dpo",
            folder / file.stem,
            seed=seed,
            overrides=[
                f"source.data={{type: file, path: {file}}}",
                "policy.max_new_tokens=8",
            ],
        )
        arms[name] = aligned(output)
    single = TASKS["vqa"].prompts(split="heldout", size=HELDOUT, seed=7)
    tasks = {SINGLE: (single, AnswerJudge()), MULTI: (among_others(single), AnswerJudge())}
    return {name: scores(policy, tasks, seed=seed) for name, policy in arms.items()}


def among_others(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The questions again, each picture among one or two others and named by its place."""
    found = []
    for row, prompt in enumerate(prompts):
        draw = python_random("among others", row)
        others = draw.sample([p for p in prompts if p is not prompt], draw.randint(1, 2))
        place = draw.randint(0, len(others))
        images = [other.images[0] for other in others]
        images.insert(place, prompt.images[0])
        text = prompt.content[-1]["content"][-1]["text"]  # type: ignore[index]
        question = f"in picture {NUMBERS[place + 1]} {text}"
        found.append(
            Prompt(
                content=conversation(question, num_images=len(images)),
                images=tuple(images),
                meta=prompt.meta,
            )
        )
    return found


def _rejected_at_random(pairs: Path, seed: int) -> Path:
    """The same pairs, the rejected answer being the right one of another row."""
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    draw = python_random("rejected at random", seed)
    lines = []
    for row in rows:
        right = row["chosen"][0]["content"]
        others = [other["chosen"][0]["content"] for other in draw.sample(rows, 50)]
        wrong = next(answer for answer in others if answer != right)
        lines.append(json.dumps({**row, "rejected": [{"role": "assistant", "content": wrong}]}))
    path = pairs.with_name("random.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


CLAIM = Claim(
    statement=(
        "MIA-DPO raises multi-image accuracy and keeps single-image accuracy, and the model's own "
        "answers chosen by attention are better rejected answers than random ones."
    ),
    source="2410.17637",
    notes=(
        "Greedy rejected answers and the published filters, at which only questions that the model "
        "always gets wrong give pairs, cost 0.11 on single images and gained 0.02 on several (one "
        "seed): with answers of a word or two such pairs teach the opposite of what the model "
        "thinks. All of the model's own wrong answers, wherever it looked, did as well as those "
        "that attention chose (0.598 against 0.603, one seed), for these are nearly all of them. "
        "Counting over all pictures, which no pair is about, fell in earlier runs, from 0.63 to "
        "0.37 and less."
    ),
    run=run,
    objectives=("dpo",),
    comparisons=(
        Comparison(metric=MULTI, arm="MIA-DPO", over="before"),
        Comparison(metric=SINGLE, arm="MIA-DPO", over="before", sign="kept", margin=0.03),
        Comparison(metric=MULTI, arm="MIA-DPO", over="random rejected"),
    ),
    seeds=3,
)
