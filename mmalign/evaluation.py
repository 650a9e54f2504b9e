"""Judging a policy on fixed prompts with fixed seeds."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmalign import distributed, rng
from mmalign.blame import naming
from mmalign.data.frames import strip
from mmalign.diversity import diversity
from mmalign.functional import best_of
from mmalign.log import RunFolder
from mmalign.policy import Policy
from mmalign.prompts import frames_of
from mmalign.rewards import judged
from mmalign.run import Evaluation
from mmalign.types import Output, Prompt

Z95 = 1.959964

Record = Mapping[str, Any]
"""A line of evaluations.jsonl, or a part of one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge thinks of a policy, or what a diversity makes of its samples.

    Attributes:
        scores: ``[P, N]`` of the N samples of each prompt; ``[P, 1]`` where there is one number for
            all of them.
    """

    scores: Tensor

    @property
    def per_prompt(self) -> Tensor:
        """``[P]`` mean score of each prompt's samples."""
        return self.scores.mean(1)

    @property
    def mean(self) -> float:
        """Mean over prompts."""
        return float(self.per_prompt.mean())

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean, over prompts (normal approximation)."""
        return half_width(self.per_prompt)

    def record(self) -> dict[str, Any]:
        """JSON-serialisable; ``best_of`` only where there are several samples."""
        found = {
            **interval(self.per_prompt),
            "num_prompts": len(self.scores),
            "per_prompt": [round(v, 6) for v in self.per_prompt.tolist()],
        }
        if self.scores.shape[1] > 1:
            found["best_of"] = self.best_of()
        return found

    def best_of(self) -> list[dict[str, float]]:
        """The expected best of n samples with its 95 % interval over prompts.

        For n = 1, 2, 4, ... and n = N, by the exact estimator of `mmalign.functional.best_of`.
        """
        best = best_of(self.scores)
        total = self.scores.shape[1]
        numbers = [n for n in range(1, total + 1) if n == total or n & (n - 1) == 0]
        return [{"n": n, **interval(best[:, n - 1])} for n in numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The samples of one prompt that are kept for people to look at.

    Attributes:
        prompt: What was asked.
        outputs: What came.
        scores: By judge, one for each output.
    """

    prompt: Prompt
    outputs: Sequence[Output]
    scores: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What came of an evaluation.

    Attributes:
        judgements: By judge, over the prompts of all processes.
        diversity: By measure, likewise: the mean distance of two samples of a prompt.
        samples: This process's kept samples.
    """

    judgements: Mapping[str, Judgement]
    diversity: Mapping[str, Judgement]
    samples: Sequence[Sample]


def interval(values: Tensor) -> dict[str, float]:
    """The mean of ``values`` ``[P]`` with its 95 % interval."""
    mean, half = float(values.mean()), half_width(values)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def half_width(values: Tensor) -> float:
    """Half of the 95 % interval of the mean of ``values`` ``[P]``; infinite for fewer than two."""
    if len(values) < 2:
        return math.inf
    return Z95 * float(values.double().std()) / math.sqrt(len(values))


def evaluate(policy: Policy, evaluation: Evaluation, *, seed: int) -> Evaluated:
    """Sample every prompt and judge the samples.

    Args:
        policy: As it is now.
        evaluation: Prompts, judges, how many samples.
        seed: The same seed gives the same draws before and after training, so differences between
            two evaluations are paired.

    Raises:
        ValueError: There are fewer prompts than processes, or a judge or a diversity fails.
    """
    prompts = evaluation.data.prompts()
    if len(prompts) < distributed.world_size():
        raise ValueError(
            f"{len(prompts)} evaluation prompts are fewer than the {distributed.world_size()} "
            "processes; give each process at least one"
        )
    mine = list(range(len(prompts)))[distributed.rank() :: distributed.world_size()]
    scores: dict[str, list[Tensor]] = {name: [] for name in evaluation.judges}
    apart: dict[str, list[Tensor]] = {name: [] for name in evaluation.diversity}
    kept: list[Sample] = []
    size = evaluation.samples
    pieces = [
        mine[i : i + evaluation.batch_size] for i in range(0, len(mine), evaluation.batch_size)
    ]
    for piece in tqdm(pieces, desc="evaluating", leave=False, disable=not distributed.is_main()):
        asked = [prompts[i] for i in piece]
        generators = [rng.generator(seed, "evaluate", i) for i in piece]
        with naming(prompts, prompts=piece):
            trajectory = policy.sample(asked, group_size=size, generators=generators)
        outputs = [o for o in trajectory.outputs if o is not None]
        sides = [outputs[i : i + size] for i in range(0, len(outputs), size)]
        repeated = [p for p in asked for _ in range(size)]
        for name, judge in evaluation.judges.items():
            values = judged(judge, repeated, outputs).view(len(piece), size, -1)
            scores[name].append(values.sum(-1))
        for name, measure in evaluation.diversity.items():
            apart[name].append(torch.tensor([[diversity(measure, side)] for side in sides]))
        for row in range(min(len(piece), evaluation.show - len(kept))):
            each = {name: values[-1][row].tolist() for name, values in scores.items()}
            kept.append(Sample(prompt=asked[row], outputs=sides[row], scores=each))
    return Evaluated(
        judgements={name: _whole(values, len(prompts)) for name, values in scores.items()},
        diversity={name: _whole(values, len(prompts)) for name, values in apart.items()},
        samples=kept,
    )


def _whole(pieces: Sequence[Tensor], total: int) -> Judgement:
    return Judgement(scores=_in_prompt_order(torch.cat(list(pieces)).float().cpu(), total))


def evaluated(
    policy: Policy, evaluation: Evaluation, folder: RunFolder, *, step: int, seed: int
) -> None:
    """Judge the policy after ``step`` updates and write down what was found.

    The record goes to evaluations.jsonl, with the rise since the folder's first evaluation, and the
    kept samples to samples/.
    """
    start = time.perf_counter()
    found = evaluate(policy, evaluation, seed=seed)
    if not distributed.is_main():
        return
    record = record_of(
        found,
        step=step,
        seconds=time.perf_counter() - start,
        first=next(iter(folder.read("evaluations.jsonl")), None),
        collapse_below=evaluation.collapse_below,
    )
    folder.append("evaluations.jsonl", record)
    write_samples(folder.path / "samples", step, found.samples)


def record_of(
    found: Evaluated, *, step: int, seconds: float, first: Record | None, collapse_below: float
) -> dict[str, Any]:
    """The line of evaluations.jsonl.

    Args:
        found: What came of the evaluation.
        step: Updates made.
        seconds: What it took.
        first: The line of the run's first evaluation, whose prompts and draws are the same; None
            where this is the first.
        collapse_below: The share of its first value below which a diversity has collapsed, which
            is warned of and noted under ``collapsed``.
    """
    record: dict[str, Any] = {
        "step": step,
        "judge": {name: one.record() for name, one in found.judgements.items()},
        "seconds": seconds,
    }
    if found.diversity:
        record["diversity"] = {name: one.record() for name, one in found.diversity.items()}
    if first is None:
        return record
    record["paired"] = {
        name: paired_rise(first["judge"][name]["per_prompt"], now["per_prompt"])
        for name, now in record["judge"].items()
    }
    for name, now in record.get("diversity", {}).items():
        before = first["diversity"][name]
        now["change"] = paired_rise(before["per_prompt"], now["per_prompt"])
        if now["mean"] < collapse_below * before["mean"]:
            record.setdefault("collapsed", []).append(name)
            _log.warning(
                "update %d: the samples of a prompt have become alike: diversity %s was %.3g and "
                "is %.3g",
                step, name, before["mean"], now["mean"],
            )  # fmt: skip
    return record


def paired_rise(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """The mean rise from one evaluation to another of the same prompts, and its 95 % interval."""
    return interval(
        torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    )


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """Keep samples as JSON with their pictures beside it, for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i, sample in enumerate(samples):
        stem = f"step-{step:06d}-{i:03d}"
        images = [
            _keep_picture(picture, folder, f"{stem}-prompt-{k}.png")
            for k, picture in enumerate(sample.prompt.images)
        ]
        outputs = [
            _keep_output(output, folder, f"{stem}-output-{k}.png")
            for k, output in enumerate(sample.outputs)
        ]
        items.append(
            {
                "prompt": text_of(sample.prompt),
                "images": images,
                "outputs": outputs,
                "scores": {name: list(values) for name, values in sample.scores.items()},
            }
        )
    (folder / f"step-{step:06d}.json").write_text(json.dumps({"step": step, "items": items}))


def text_of(prompt: Prompt) -> str:
    """A prompt as one line for people: the text of its last message, images as <image>."""
    if isinstance(prompt.content, str):
        return prompt.content
    content = prompt.content[-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join("<image>" if part["type"] == "image" else part["text"] for part in content)


def _keep_output(output: Output, folder: Path, name: str) -> str | dict[str, str]:
    """Text as it is, a picture or the frames of a clip side by side as a file."""
    if isinstance(output, str):
        return output
    return {"image": _keep_picture(strip(frames_of(output)), folder, name)}


def _keep_picture(picture: Any, folder: Path, name: str) -> str:
    picture.save(folder / name)
    return name


def _in_prompt_order(values: Tensor, total: int) -> Tensor:
    """``[P, ...]`` of all processes, back in the order of the prompts."""
    world = distributed.world_size()
    gathered = distributed.all_gather(values.flatten()).view(-1, *values.shape[1:])
    order = torch.cat([torch.arange(r, total, world) for r in range(world)])
    result = torch.empty_like(gathered)
    result[order] = gathered
    return result
