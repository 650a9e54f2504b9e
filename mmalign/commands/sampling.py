"""``mmalign sample`` and ``mmalign eval``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mmalign import rng
from mmalign.commands.targets import load_policy, load_run
from mmalign.data import File, write_samples
from mmalign.evaluation import evaluate, text_of
from mmalign.policy import Policy
from mmalign.prompts import frames_of
from mmalign.run import DataSpec, Run
from mmalign.types import Output, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which prompts are sampled.

    Attributes:
        prompts: Given in words, or none.
        data: A data file, or None.
        num: At most so many.
    """

    prompts: tuple[str, ...] = ()
    data: str | None = None
    num: int = 16

    def of(self, run: Run) -> Sequence[Prompt]:
        """The prompts: in words, else of the data file, else the run's held-out or training ones.

        Raises:
            ValueError: Both were given, or the run names no data.
        """
        if self.prompts and self.data is not None:
            raise ValueError("give either --prompt or --data")
        if self.prompts:
            return [Prompt(content=text) for text in self.prompts]
        if self.data is not None:
            return File(path=self.data, max_rows=self.num).prompts()
        return _data_of(run).prompts()[: self.num]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How they are sampled.

    Attributes:
        samples: Samples of each prompt.
        batch_size: Prompts at a time; does not change what is drawn.
        seed: Of the draws.
    """

    samples: int = 1
    batch_size: int = 32
    seed: int = 0


def sample(
    name: str, overrides: Sequence[str], *, asked: Asked, drawing: Drawing, output: Path
) -> None:
    """Write samples as JSONL with pictures beside it, and print the first few."""
    run = load_run(name, overrides)
    prompts = asked.of(run)
    policy = load_policy(name, run)
    drawn = list(draw(policy, prompts, drawing))
    number = write_samples(output, drawn)
    for prompt, made in drawn[:8]:
        click.echo(f"{text_of(prompt)!r}\n    -> {shown(made)}")
    click.echo(f"{number} samples of {len(prompts)} prompts in {output}")


def shown(made: Output) -> str:
    """A sample in one line."""
    if isinstance(made, str):
        return repr(made)
    first, *more = frames_of(made)
    clip = f"clip of {1 + len(more)} frames"
    return f"a {first.width} x {first.height} {clip if more else 'picture'}"


def draw(
    policy: Policy, prompts: Sequence[Prompt], drawing: Drawing
) -> Iterator[tuple[Prompt, Output]]:
    """Samples prompt by prompt, each prompt's from a generator of its own."""
    size = drawing.batch_size
    for start in tqdm(range(0, len(prompts), size), desc="sampling", leave=False):
        part = prompts[start : start + size]
        numbers = range(start, start + len(part))
        generators = [rng.generator(drawing.seed, "evaluate", i) for i in numbers]
        made = policy.sample(part, group_size=drawing.samples, generators=generators)
        for row, output in zip(made.prompt_of.tolist(), made.outputs, strict=True):
            assert output is not None, "an adapter's sample() must decode every output"
            yield part[row], output


def judge(name: str, overrides: Sequence[str], *, as_json: bool) -> None:
    """Print what the config's judges say, with 95 % intervals.

    Raises:
        ValueError: The config names no judges.
    """
    run = load_run(name, overrides)
    if run.evaluation is None:
        raise ValueError(f"{name} has no `evaluation`, so there is neither judge nor prompt")
    policy = load_policy(name, run)
    found = evaluate(policy, run.evaluation, seed=run.seed)
    records = {key: one.record() for key, one in found.judgements.items()}
    apart = {key: one.record() for key, one in found.diversity.items()}
    if as_json:
        click.echo(
            json.dumps({**_short(records), **({"diversity": _short(apart)} if apart else {})})
        )
        return
    lines = {**records, **{f"diversity {key}": record for key, record in apart.items()}}
    width = max(map(len, lines))
    for key, record in lines.items():
        interval = f"[{record['low']:.3f}, {record['high']:.3f}]"
        click.echo(
            f"{key:{width}}  {record['mean']:.3f}  95 % interval {interval}  "
            f"{record['num_prompts']} prompts"
        )
        for best in record.get("best_of", [])[1:]:
            click.echo(f"{'':{width}}  {best['mean']:.3f}  best of {best['n']}")


def _short(records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    kept = ("mean", "low", "high", "num_prompts", "best_of")
    return {key: {x: r[x] for x in kept if x in r} for key, r in records.items()}


def _data_of(run: Run) -> DataSpec:
    if run.evaluation is not None:
        return run.evaluation.data
    assert is_dataclass(run.source) and not isinstance(run.source, type)
    source: Any = run.source
    if "data" in {f.name for f in fields(run.source)}:
        found: DataSpec = source.data
        return found
    raise ValueError("the config has no `evaluation`; give prompts with --prompt or --data")
