"""``mmalign eval --on BENCHMARK``: a model's answers, or somebody's, measured on a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mmalign import config
from mmalign.benchmarks import (
    AnswerDrawing,
    Benchmark,
    Item,
    Measured,
    Probe,
    Report,
    write_lines,
)
from mmalign.commands.targets import load_policy, load_run
from mmalign.policy import Policy

PREFIX = "on."
"""What settings of the benchmark begin with, among those of the run."""
# By name, as the registry names classes: the core imports no modality.
COMPLETING = "mmalign.vision.completing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which questions are answered, and how.

    Attributes:
        on: A benchmark's name, or a file of its settings.
        num: Only so many questions, from the first; None for all.
        drawing: How a model answers.
    """

    on: str
    num: int | None = None
    drawing: AnswerDrawing = field(default_factory=AnswerDrawing)


def measure(
    given: Sequence[str], asked: Asked, *, answers: Path | None, output: Path | None, as_json: bool
) -> None:
    """Print what a benchmark says of answers, and write them and it into the folder ``output``.

    Args:
        given: Unless answers are given, the config first; then ``key=value`` each.
        asked: Which questions.
        answers: A file of answers; None to sample them.
        output: A new folder, or None.
        as_json: Whether to print JSON.

    Raises:
        ValueError: The folder exists, a file is wrong, or there is neither a config nor answers.
    """
    if output is not None and output.exists():
        raise ValueError(f"{output} exists already; choose another folder or remove it")
    name, settings = _named(given, needed=answers is None)
    theirs = [entry for entry in settings if not entry.startswith(PREFIX)]
    if answers is not None and theirs:
        raise ValueError(
            f"{theirs[0]!r} sets a run, and with --answers there is none; see {PREFIX}"
        )
    mine = [entry.removeprefix(PREFIX) for entry in settings if entry.startswith(PREFIX)]
    benchmark = config.load_benchmark(asked.on, mine)
    items = benchmark.questions()[: asked.num]
    report: Report | None = None
    if answers is not None:
        texts = benchmark.read_answers(answers, items)
    else:
        policy = load_policy(name, load_run(name, theirs))
        texts, report = _answered(policy, benchmark, items, asked.drawing)
    if output is not None:
        # Before they are measured: a judge may fail, and --answers goes on from here.
        output.mkdir(parents=True)
        benchmark.write_answers(output, items, texts)
    report = report or benchmark.measure(items, texts)
    record = {
        "benchmark": config.described(benchmark),
        "model": name or None,
        "drawing": None if answers is not None else asdict(asked.drawing),
        **report.record(),
    }
    if output is not None:
        write_lines(output / "rows.jsonl", report.rows)
        (output / "report.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    click.echo(json.dumps(record) if as_json else "\n".join(lines(report)))


def examine(
    policy: Policy, benchmark: Benchmark, items: Sequence[Item], drawing: AnswerDrawing
) -> tuple[list[str], Report]:
    """A policy's answers, and what the benchmark says of them.

    Raises:
        ValueError: As `answer`, or as the benchmark raises.
    """
    texts, report = _answered(policy, benchmark, items, drawing)
    return texts, report or benchmark.measure(items, texts)


def answer(
    policy: Policy, benchmark: Benchmark, items: Sequence[Item], drawing: AnswerDrawing
) -> list[str]:
    """The answers of a policy; an answer depends on no other question.

    Raises:
        ValueError: A picture is missing, or the policy does not write text.
    """
    completing: Any = import_module(COMPLETING)
    decoding = completing.Decoding(
        temperature=drawing.temperature, max_new_tokens=benchmark.max_new_tokens
    )
    texts: list[str] = []
    size = drawing.batch_size
    for start in tqdm(range(0, len(items), size), desc="answering", leave=False):
        part = items[start : start + size]
        completed = completing.complete(
            policy,
            [item.prompt() for item in part],
            decoding=decoding,
            generators=drawing.generators(part),
            batch_size=size,
        )
        texts += [found.text for found in completed]
    return texts


def lines(report: Report) -> list[str]:
    """The report for people: metrics, then each category's, then the counts that are not 0."""
    found = _table(report.metrics)
    if len(report.categories) > 1:
        for category, numbers in report.categories.items():
            found += [f"{category}:", *(f"  {line}" for line in _table(numbers))]
    return [*found, *(f"{name}: {number}" for name, number in report.counts.items() if number)]


def _answered(
    policy: Policy, benchmark: Benchmark, items: Sequence[Item], drawing: AnswerDrawing
) -> tuple[list[str], Report | None]:
    """The answers, and the report where it is made while they are given."""
    if isinstance(benchmark, Probe):
        return benchmark.probe(policy, items, drawing)
    return answer(policy, benchmark, items, drawing), None


def _table(metrics: Any) -> list[str]:
    width = max(map(len, metrics))
    return [f"{name:{width}}  {_said(found)}" for name, found in metrics.items()]


def _said(found: Measured) -> str:
    if found.value is None:
        return "not defined"
    if found.half_width is None:
        return f"{found.value:.4g}"
    low, high = found.value - found.half_width, found.value + found.half_width
    return f"{found.value:.4g}  95 % interval [{low:.4g}, {high:.4g}]  of {found.total}"


def _named(given: Sequence[str], *, needed: bool) -> tuple[str, Sequence[str]]:
    """The config's name and the settings; the name is "" where none is needed."""
    if not needed:
        if given and "=" not in given[0]:
            raise ValueError(f"give either FILE ({given[0]}) or --answers")
        return "", given
    if not given or ("=" in given[0] and not Path(given[0]).exists()):
        raise ValueError("give FILE, whose model answers, or --answers")
    return given[0], given[1:]
