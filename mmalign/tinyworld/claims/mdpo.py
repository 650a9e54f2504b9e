"""mDPO: preferences between views of the picture keep a model from answering blind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mmalign.claims import Claim, Comparison
from mmalign.data import write_preferences
from mmalign.policy import Policy
from mmalign.rng import generator, python_random
from mmalign.tinyworld.claims.common import BATCH, aligned, answers, fresh, trained
from mmalign.tinyworld.judges import AnswerJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Preference, Prompt
from mmalign.vision import LVLMPolicy

RECORDED, HELDOUT = 8000, 2400
"""Questions drawn, of which about one in four asks whether something is there."""
KEPT = 0.1
"""Share of the pairs whose right answer is "no" that stay: nine of ten then say "yes"."""
BLIND = 'probability of "yes" without the picture'
GAIN = "nats by which the picture makes the right answer likelier"
ACCURACY = "accuracy"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """DPO on pairs that nearly all say "yes", and the same with preferences between views."""
    file = folder / "pairs.jsonl"
    if not file.exists():
        write_preferences(file, lopsided(seed))
    same = [
        f"source.data={{type: file, path: {file}}}",
        "training.steps=60",
        "policy.max_new_tokens=8",
    ]
    runs = {
        "DPO": trained(
            "vision/lvlm_mdpo",
            folder / "dpo",
            seed=seed,
            overrides=[*same, "objective={type: dpo, beta: 0.1}", "source.image_weight=0"],
        ),
        "mDPO": trained("vision/lvlm_mdpo", folder / "mdpo", seed=seed, overrides=same),
    }
    arms = {"before": fresh(LVLMPolicy(max_new_tokens=8))}
    arms |= {name: aligned(output) for name, output in runs.items()}
    drawn = TASKS["vqa"].prompts(split="heldout", size=HELDOUT, seed=7)
    prompts = [prompt for prompt in drawn if prompt.meta["kind"] == "exists"]
    return {name: measured(policy, prompts, seed=seed) for name, policy in arms.items()}


def lopsided(seed: int) -> list[Preference]:
    """Pairs about whether something is there, most of those whose right answer is "no" left out."""
    draw = python_random("lopsided", seed)
    return [
        pair
        for pair in TASKS["vqa"].preferences(size=RECORDED, seed=seed)
        if pair.prompt.meta["kind"] == "exists" and (pair.chosen == "yes" or draw.random() < KEPT)
    ]


def measured(policy: Policy, prompts: Sequence[Prompt], *, seed: int) -> dict[str, list[float]]:
    """What a policy answers, and what it answers when every picture is plain grey."""
    grey = [
        replace(prompt, images=tuple(Image.new("RGB", one.size, "grey") for one in prompt.images))
        for prompt in prompts
    ]
    truth = [str(prompt.meta["answer"]) for prompt in prompts]
    seen, unseen = (_log_probs(policy, shown, truth) for shown in (prompts, grey))
    blind = _log_probs(policy, grey, ["yes"] * len(grey))
    return {
        BLIND: [math.exp(value) for value in blind],
        GAIN: [a - b for a, b in zip(seen, unseen, strict=True)],
        ACCURACY: AnswerJudge()(prompts, answers(policy, prompts, seed=seed)).tolist(),
    }


@torch.no_grad()
def _log_probs(policy: Policy, prompts: Sequence[Prompt], said: Sequence[str]) -> list[float]:
    """Nats of one answer to each prompt, its end included."""
    found: list[float] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        trajectory = policy.adapter.encode(
            part,
            [[answer] for answer in said[start : start + BATCH]],
            generators=[generator(0, "encode") for _ in part],
        )
        found += policy.scores(trajectory).log_probs.sum(1).tolist()
    return found


CLAIM = Claim(
    statement=(
        "Preferences between views of a picture keep a model from answering blind: taught by pairs "
        'that nearly all say "yes", it says "yes" less often without looking than after DPO.'
    ),
    source="2406.11839",
    notes=(
        "The nats by which the picture makes the right answer likelier rose at two seeds of three. "
        "On pairs without such a slant both left as much to blind guesses, and that gain was all "
        "that views brought (0.07 nats)."
    ),
    run=run,
    objectives=("dpo", "opa_dpo"),
    comparisons=(
        Comparison(metric=BLIND, arm="mDPO", over="DPO", sign="lower"),
        Comparison(metric=ACCURACY, arm="mDPO", over="DPO"),
    ),
    seeds=3,
)
