"""Claims of papers, tried out: arms are trained and measured on the same prompts, seed by seed.

A claim holds here when each of its comparisons does: the difference has the claimed sign at every
seed, and its 95 % interval over the prompts of all seeds together excludes nought (or, where
something is claimed to be kept, excludes a loss of more than a margin). Prompts are the only thing
the interval knows about; how much training itself varies is seen in the differences by seed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mmalign.evaluation import half_width

Scores = Mapping[str, Sequence[float]]
"""By metric, one score for each held-out prompt, in the same order in every arm; or one number."""
Measured = Mapping[str, Scores]
"""By arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One difference that a claim is made of.

    Attributes:
        metric: What is compared.
        arm: Whose.
        over: Compared with whose, or with which number.
        sign: Whether the first is higher, lower, not lower by more than ``margin``, or neither
            lower nor higher by more than it.
        margin: In units of the metric, for ``kept`` and ``within``.
    """

    metric: str
    arm: str
    over: str | float
    sign: Literal["higher", "lower", "kept", "within"] = "higher"
    margin: float = 0.0

    def __str__(self) -> str:
        other = self.over if isinstance(self.over, str) else f"{self.over:g}"
        said = {
            "higher": f"higher than {other}",
            "lower": f"lower than {other}",
            "kept": f"keeps that of {other} (within {self.margin:g})",
            "within": f"within {self.margin:g} of {other}",
        }
        return f"{self.metric}: {self.arm} {said[self.sign]}"

    def holds(self, low: float, high: float) -> bool:
        """Whether all differences between two bounds are as claimed."""
        return {
            "higher": low > 0,
            "lower": high < 0,
            "kept": low > -self.margin,
            "within": -self.margin <= low and high <= self.margin,
        }[self.sign]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a paper says, and the experiment that tries it in small.

    Attributes:
        statement: In one sentence.
        source: The paper.
        run: Trains and measures every arm, from a folder to work in and a seed.
        comparisons: What must come out.
        seeds: How often it is run, at seeds 0, 1, ...
        notes: What else a reader should know: which settings were tried and did not show it.
        objectives: Registered names of those that its arms are trained with.
    """

    statement: str
    source: str
    run: Callable[[Path, int], Measured]
    comparisons: Sequence[Comparison]
    seeds: int = 1
    notes: str = ""
    objectives: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out of a comparison.

    Attributes:
        difference: Mean over the prompts of all seeds.
        low: Lower end of its 95 % interval; None where every seed gives one number.
        high: Upper end, likewise.
        by_seed: The mean of each seed.
        holds: Whether it came out as claimed.
    """

    difference: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...]
    holds: bool


def judge(comparison: Comparison, runs: Sequence[Measured]) -> Verdict:
    """Whether a comparison comes out as claimed.

    Args:
        comparison: Which arms, by which metric.
        runs: What was measured, one for each seed.

    Raises:
        ValueError: An arm or metric was not measured, or on another number of prompts.
    """
    parts = [_difference(comparison, run) for run in runs]
    every = torch.cat(parts)
    mean, half = float(every.mean()), half_width(every)
    by_seed = tuple(float(part.mean()) for part in parts)
    holds = comparison.holds(min(by_seed), max(by_seed))
    if len(every) == len(runs):
        return Verdict(difference=mean, low=None, high=None, by_seed=by_seed, holds=holds)
    low, high = mean - half, mean + half
    holds = holds and comparison.holds(low, high)
    return Verdict(difference=mean, low=low, high=high, by_seed=by_seed, holds=holds)


def run_claim(claim: Claim, folder: Path, seeds: Sequence[int]) -> list[Measured]:
    """What every seed measured; a seed that is already in ``folder`` is not run again."""
    found = []
    for seed in seeds:
        path = folder / f"seed-{seed}.json"
        if not path.is_file():
            start = time.perf_counter()
            work = folder / f"seed-{seed}"
            work.mkdir(parents=True, exist_ok=True)
            measured = claim.run(work, seed)
            record = {"seconds": round(time.perf_counter() - start), "scores": _plain(measured)}
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(json.dumps(record), encoding="utf-8")
            partial.replace(path)
        found.append(json.loads(path.read_text(encoding="utf-8"))["scores"])
    return found


def record_of(claim: Claim, runs: Sequence[Measured]) -> dict[str, Any]:
    """The outcome as plain data: each arm's means by seed, and each comparison's verdict."""
    arms = {
        arm: {metric: [_mean(run[arm][metric]) for run in runs] for metric in runs[0][arm]}
        for arm in runs[0]
    }
    verdicts = []
    for comparison in claim.comparisons:
        verdict = judge(comparison, runs)
        verdicts.append(
            {
                "comparison": str(comparison),
                "difference": _rounded(verdict.difference),
                "low": None if verdict.low is None else _rounded(verdict.low),
                "high": None if verdict.high is None else _rounded(verdict.high),
                "by_seed": [_rounded(value) for value in verdict.by_seed],
                "holds": verdict.holds,
            }
        )
    prompts = {
        metric: len(values) for scores in runs[0].values() for metric, values in scores.items()
    }
    return {
        "statement": claim.statement,
        "source": claim.source,
        "notes": claim.notes,
        "prompts": prompts,
        "arms": arms,
        "comparisons": verdicts,
        "holds": all(verdict["holds"] for verdict in verdicts),
    }


def table(record: Mapping[str, Any]) -> str:
    """An outcome in Markdown: the arms' means over seeds, then the comparisons."""
    metrics = list(record["prompts"])
    lines = ["| arm | " + " | ".join(metrics) + " |", "|---|" + "---|" * len(metrics)]
    for arm, scores in record["arms"].items():
        cells = [f"{sum(scores[m]) / len(scores[m]):.3f}" if m in scores else "" for m in metrics]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| comparison | difference [95 % interval] | by seed | holds |",
        "|---|---|---|---|",
    ]
    for one in record["comparisons"]:
        interval = f"{one['difference']:+.3f}"
        if one["low"] is not None:
            interval += f" [{one['low']:+.3f}, {one['high']:+.3f}]"
        seeds = ", ".join(f"{value:+.3f}" for value in one["by_seed"])
        holds = "yes" if one["holds"] else "**no**"
        lines.append(f"| {one['comparison']} | {interval} | {seeds} | {holds} |")
    return "\n".join(lines)


def _difference(comparison: Comparison, run: Measured) -> torch.Tensor:
    own = _values(comparison, run, comparison.arm)
    if not isinstance(comparison.over, str):
        return own - comparison.over
    other = _values(comparison, run, comparison.over)
    if len(own) != len(other):
        raise ValueError(
            f"{comparison}: measured on {len(own)} and {len(other)} prompts; both arms need the "
            "same"
        )
    return own - other


def _values(comparison: Comparison, run: Measured, arm: str) -> torch.Tensor:
    if comparison.metric not in run.get(arm, {}):
        raise ValueError(f"{comparison}: no {comparison.metric!r} was measured for {arm!r}")
    return torch.tensor(run[arm][comparison.metric], dtype=torch.float64)


def _plain(measured: Measured) -> dict[str, dict[str, list[float]]]:
    found = {arm: {m: [float(v) for v in vs] for m, vs in s.items()} for arm, s in measured.items()}
    for arm, scores in found.items():
        for metric, values in scores.items():
            if not all(math.isfinite(value) for value in values):
                raise ValueError(f"{arm}: {metric} holds a value that is not finite")
    return found


def _mean(values: Sequence[float]) -> float:
    return _rounded(sum(values) / len(values))


def _rounded(value: float) -> float:
    return round(value, 4)
