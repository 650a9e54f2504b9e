"""mDPO: preferences between views of the picture keep a model from answering blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mmalign import rng
from mmalign.claims import Claim, Comparison
from mmalign.policy import Policy
from mmalign.tinyworld.claims.common import BATCH, aligned, answers, fresh, trained
from mmalign.tinyworld.judges import AnswerJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Prompt
from mmalign.vision import LVLMPolicy
from mmalign.vision.completing import Decoding, complete

HELDOUT = 600
BLIND = "share of likeliest answers that stay the same without the picture"
GAIN = "nats by which the picture makes the right answer likelier"
ACCURACY = "accuracy"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """DPO on recorded answers, and the same with preferences between views and an anchor."""
    data = f"{{type: tinyworld, task: vqa, size: 2000, seed: {seed}}}"
    same = [f"source.data={data}", "training.steps=60", "policy.max_new_tokens=8"]
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
    prompts = TASKS["vqa"].prompts(split="heldout", size=HELDOUT, seed=7)
    return {
        name: {
            GAIN: gain(policy, prompts),
            BLIND: blind(policy, prompts),
            ACCURACY: AnswerJudge()(prompts, answers(policy, prompts, seed=seed)).tolist(),
        }
        for name, policy in arms.items()
    }


def gain(policy: Policy, prompts: Sequence[Prompt]) -> list[float]:
    """Log-prob of the right answer with the picture less that with a plain grey one, in nats.

    0 where the answer is given blind.
    """
    seen, unseen = (_right(policy, shown) for shown in (prompts, _grey(prompts)))
    return [a - b for a, b in zip(seen, unseen, strict=True)]


def blind(policy: Policy, prompts: Sequence[Prompt]) -> list[float]:
    """1 for each prompt whose likeliest answer is the same when the picture is plain grey."""
    seen, unseen = (_likeliest(policy, shown) for shown in (prompts, _grey(prompts)))
    return [float(a == b) for a, b in zip(seen, unseen, strict=True)]


def _grey(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [
        replace(prompt, images=tuple(Image.new("RGB", one.size, "grey") for one in prompt.images))
        for prompt in prompts
    ]


@torch.no_grad()
def _right(policy: Policy, prompts: Sequence[Prompt]) -> list[float]:
    found: list[float] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        trajectory = policy.adapter.encode(
            part,
            [[str(prompt.meta["answer"])] for prompt in part],
            generators=[rng.generator(0, "encode") for _ in part],
        )
        found += policy.scores(trajectory).log_probs.sum(1).tolist()
    return found


def _likeliest(policy: Policy, prompts: Sequence[Prompt]) -> list[str]:
    generators = [rng.generator(0, "likeliest", row) for row in range(len(prompts))]
    decoding = Decoding(temperature=0.0, max_new_tokens=8)
    made = complete(policy, prompts, decoding=decoding, generators=generators, batch_size=64)
    return [one.text for one in made]


CLAIM = Claim(
    statement=(
        "Preferences between views of a picture make answers depend more on it, at the accuracy "
        "of DPO on the same pairs."
    ),
    source="2406.11839",
    notes=(
        "The share of likeliest answers that stay the same without the picture does not fall: the "
        "greedy answers of this model are nearly all right before."
    ),
    run=run,
    comparisons=(
        Comparison(metric=GAIN, arm="mDPO", over="DPO"),
        Comparison(metric=ACCURACY, arm="mDPO", over="DPO", sign="kept", margin=0.03),
    ),
    seeds=3,
)
