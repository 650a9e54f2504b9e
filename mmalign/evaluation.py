"""Judging a policy on fixed prompts with fixed seeds."""

from __future__ import annotations

import json
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
from mmalign.log import RunFolder
from mmalign.policy import Policy
from mmalign.rewards import judged
from mmalign.run import Evaluation
from mmalign.types import Output, Prompt

Z95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge thinks of a policy.

    Attributes:
        per_prompt: ``[P]`` mean score of each prompt's samples.
    """

    per_prompt: Tensor

    @property
    def mean(self) -> float:
        """Mean over prompts."""
        return float(self.per_prompt.mean())

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean, over prompts (normal approximation)."""
        return half_width(self.per_prompt)

    def record(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "mean": self.mean,
            "low": self.mean - self.half_width,
            "high": self.mean + self.half_width,
            "num_prompts": len(self.per_prompt),
            "per_prompt": [round(v, 6) for v in self.per_prompt.tolist()],
        }


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


def half_width(values: Tensor) -> float:
    """Half of the 95 % interval of the mean of ``values`` ``[P]``; infinite for fewer than two."""
    if len(values) < 2:
        return math.inf
    return Z95 * float(values.double().std()) / math.sqrt(len(values))


def evaluate(
    policy: Policy, evaluation: Evaluation, *, seed: int
) -> tuple[dict[str, Judgement], list[Sample]]:
    """Sample every prompt and judge the samples.

    Args:
        policy: As it is now.
        evaluation: Prompts, judges, how many samples.
        seed: The same seed gives the same draws before and after training, so differences between
            two evaluations are paired.

    Returns:
        Judgements by judge, over the prompts of all processes; this process's kept samples.

    Raises:
        ValueError: There are fewer prompts than processes, or a judge fails.
    """
    prompts = evaluation.data.prompts()
    if len(prompts) < distributed.world_size():
        raise ValueError(
            f"{len(prompts)} evaluation prompts are fewer than the {distributed.world_size()} "
            "processes; give each process at least one"
        )
    mine = list(range(len(prompts)))[distributed.rank() :: distributed.world_size()]
    scores: dict[str, list[Tensor]] = {name: [] for name in evaluation.judges}
    kept: list[Sample] = []
    pieces = [
        mine[i : i + evaluation.batch_size] for i in range(0, len(mine), evaluation.batch_size)
    ]
    for piece in tqdm(pieces, desc="evaluating", leave=False, disable=not distributed.is_main()):
        asked = [prompts[i] for i in piece]
        generators = [rng.generator(seed, "evaluate", i) for i in piece]
        trajectory = policy.sample(asked, group_size=evaluation.samples, generators=generators)
        outputs = [o for o in trajectory.outputs if o is not None]
        repeated = [p for p in asked for _ in range(evaluation.samples)]
        found = {}
        for name, judge in evaluation.judges.items():
            values = judged(judge, repeated, outputs).view(len(piece), evaluation.samples, -1)
            found[name] = values.sum(-1)
            scores[name].append(found[name].mean(1))
        for row in range(min(len(piece), evaluation.show - len(kept))):
            sides = outputs[row * evaluation.samples : (row + 1) * evaluation.samples]
            each = {name: values[row].tolist() for name, values in found.items()}
            kept.append(Sample(prompt=asked[row], outputs=sides, scores=each))
    return {
        name: Judgement(per_prompt=_in_prompt_order(torch.cat(values).float().cpu(), len(prompts)))
        for name, values in scores.items()
    }, kept


def evaluated(
    policy: Policy, evaluation: Evaluation, folder: RunFolder, *, step: int, seed: int
) -> None:
    """Judge the policy after ``step`` updates and write down what was found.

    The record goes to evaluations.jsonl, with the rise since the folder's first evaluation, and the
    kept samples to samples/.
    """
    start = time.perf_counter()
    judgements, samples = evaluate(policy, evaluation, seed=seed)
    if not distributed.is_main():
        return
    record: dict[str, Any] = {
        "step": step,
        "judge": {name: j.record() for name, j in judgements.items()},
        "seconds": time.perf_counter() - start,
    }
    earlier = folder.read("evaluations.jsonl")
    if earlier:
        record["paired"] = {
            name: paired_rise(earlier[0]["judge"][name]["per_prompt"], now["per_prompt"])
            for name, now in record["judge"].items()
        }
    folder.append("evaluations.jsonl", record)
    write_samples(folder.path / "samples", step, samples)


def paired_rise(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """The mean rise from one evaluation to another of the same prompts, and its 95 % interval."""
    rise = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    mean, half = float(rise.mean()), half_width(rise)
    return {"mean": mean, "low": mean - half, "high": mean + half}


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
            output
            if isinstance(output, str)
            else {"image": _keep_picture(output, folder, f"{stem}-output-{k}.png")}
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


def _keep_picture(picture: Any, folder: Path, name: str) -> str:
    picture.save(folder / name)
    return name


def _in_prompt_order(values: Tensor, total: int) -> Tensor:
    """Scores of all processes, back in the order of the prompts."""
    world = distributed.world_size()
    gathered = distributed.all_gather(values)
    order = torch.cat([torch.arange(r, total, world) for r in range(world)])
    result = torch.empty_like(gathered)
    result[order] = gathered
    return result
