"""What every experiment does: train a shipped config, sample the result, judge the samples."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mmalign import config, rng
from mmalign.commands.targets import config_file, load_policy, load_run
from mmalign.data.building import construct
from mmalign.policy import Policy
from mmalign.protocols import RewardModel
from mmalign.rewards import judged
from mmalign.run import PolicySpec
from mmalign.tinyworld.data import TaskJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Output, Prompt

BATCH = 64
GRADED, EXACT = "graded judge's score", "share exactly right"


def trained(name: str, folder: Path, *, seed: int, overrides: Sequence[str] = ()) -> Path:
    """Train a shipped config in ``folder``, without evaluations; returns the run's folder.

    A run that is already complete there is not trained again.
    """
    if not (folder / "model").is_dir():
        fixed = [f"output={folder}", f"seed={seed}", "evaluation=null"]
        load_run(name, [*overrides, *fixed]).train()
        gc.collect()
    return folder


def aligned(folder: Path) -> Policy:
    """The model that a run in ``folder`` made."""
    return load_policy(str(folder), load_run(str(folder), ()))


def fresh(spec: PolicySpec) -> Policy:
    """A policy as it starts."""
    torch.manual_seed(0)
    return spec.load().on_accelerator()


def start(name: str, overrides: Sequence[str] = ()) -> Policy:
    """The policy of a shipped config as it starts."""
    return fresh(load_run(name, overrides).policy)


def logged(folder: Path, metric: str) -> list[float]:
    """What a run in ``folder`` logged of a metric, update by update."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [float(record[metric]) for record in map(json.loads, lines) if metric in record]


def built(name: str, path: Path, *, seed: int, shipped: str, settings: Sequence[str] = ()) -> Path:
    """Construct preference data with a shipped builder config; returns the file.

    A file that is already there is not made again.
    """
    if not path.exists():
        builder = config.load_builder(name, config_file(shipped), settings)
        construct(builder, path, seed=seed, settings=repr((name, shipped, list(settings))))
    return path


def measured(path: Path, measure: Callable[[], dict[str, list[float]]]) -> dict[str, list[float]]:
    """What ``measure`` finds, kept in ``path``; what is kept there is not measured again."""
    if not path.is_file():
        found = measure()
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    kept: dict[str, list[float]] = json.loads(path.read_text("utf-8"))
    return kept


def answers(policy: Policy, prompts: Sequence[Prompt], *, seed: int) -> list[Output]:
    """One sample of each prompt, drawn from numbers of its own."""
    found: list[Output] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        generators = [rng.generator(seed, "evaluate", start + i) for i in range(len(part))]
        made = policy.sample(part, group_size=1, generators=generators)
        found += [output for output in made.outputs if output is not None]
    assert len(found) == len(prompts)
    return found


def scores(
    policy: Policy,
    tasks: Mapping[str, tuple[Sequence[Prompt], RewardModel]],
    *,
    seed: int,
) -> dict[str, list[float]]:
    """Per-prompt scores by metric, one sample a prompt."""
    return {
        metric: judged(judge, prompts, answers(policy, prompts, seed=seed)).tolist()
        for metric, (prompts, judge) in tasks.items()
    }


def judged_exactly(
    policy: Policy, task: str, *, size: int, seed: int, graded: bool = True
) -> dict[str, list[float]]:
    """The tiny world's judge of one answer to each of ``size`` held-out prompts of a task.

    Args:
        policy: Whose answers.
        task: Of the prompts.
        size: How many, the same ones for every seed.
        seed: Of the answers.
        graded: Whether the score that half-right answers earn is measured too.
    """
    prompts = TASKS[task].prompts(split="heldout", size=size, seed=7)
    made = answers(policy, prompts, seed=seed)
    kinds = {GRADED: True, EXACT: False} if graded else {EXACT: False}
    return {
        name: judged(TaskJudge(partial=partial), prompts, made).tolist()
        for name, partial in kinds.items()
    }
