"""What a run left in its folder, read for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.config import nodes
from mmalign.log import TIMING

Record = Mapping[str, Any]

MAX_SAMPLED = 6
"""Evaluations whose samples are shown."""
COUNTERS = ("counts/", "skipped/")
"""Metrics that count something; the report adds them up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as its folder describes it.

    Attributes:
        folder: Of the run.
        name: What the report calls it.
        metrics: One record an update, with ``step``.
        evaluations: One record an evaluation, with ``step``.
        sampled: The kept samples by update, of the first evaluation, the last one, and some between
            them; in order.
        config: The resolved config as text.
        settings: The same as data.
        notes: What the run said of its settings when it began: ``note``, with ``step``.
    """

    folder: Path
    name: str
    metrics: Sequence[Record]
    evaluations: Sequence[Record]
    sampled: Mapping[int, Sequence[Record]]
    config: str
    settings: Record
    notes: Sequence[Record]

    @property
    def before(self) -> Sequence[Record]:
        """The kept samples of the first evaluation."""
        return next(iter(self.sampled.values()), ())

    @property
    def after(self) -> Sequence[Record]:
        """The kept samples of the last one; empty where there was only one."""
        return list(self.sampled.values())[-1] if len(self.sampled) > 1 else ()

    @property
    def seconds(self) -> float:
        """Seconds spent in updates and evaluations."""
        updates = sum(r.get(f"{TIMING}update", 0.0) for r in self.metrics)
        return float(updates + sum(r.get("seconds", 0.0) for r in self.evaluations))

    @property
    def counters(self) -> dict[str, float]:
        """Sums of what was counted."""
        found: dict[str, float] = {}
        for record in self.metrics:
            for key, value in record.items():
                if key.startswith(COUNTERS):
                    found[key] = found.get(key, 0.0) + value
        return {key: value for key, value in sorted(found.items()) if value}


def read(folder: Path) -> RunRecord:
    """The record of a run.

    Raises:
        ValueError: The folder holds no run, or a file of it is malformed.
    """
    if not (folder / "metrics.jsonl").is_file() and not (folder / "evaluations.jsonl").is_file():
        raise ValueError(
            f"{folder} holds no run: neither metrics.jsonl nor evaluations.jsonl is in it"
        )
    evaluations = _lines(folder / "evaluations.jsonl")
    steps = sorted({r["step"] for r in evaluations})
    config = folder / "config.yaml"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    settings = nodes.parse(text, name=str(config)).plain() if text else {}
    return RunRecord(
        folder=folder,
        name=folder.parent.name if folder.name == "run" and folder.parent.name else folder.name,
        metrics=_lines(folder / "metrics.jsonl"),
        evaluations=evaluations,
        sampled={step: _samples(folder, step) for step in _spread(steps)},
        config=text,
        settings=settings,
        notes=_lines(folder / "notes.jsonl"),
    )


def _spread(steps: Sequence[int]) -> list[int]:
    """The first, the last, and others at equal distances: at most `MAX_SAMPLED`."""
    if len(steps) <= MAX_SAMPLED:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (MAX_SAMPLED - 1))] for i in range(MAX_SAMPLED)]


def _lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    found: list[Record] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}:{number}: a record needs a whole number `step`")
        found.append(record)
    return found


def _samples(folder: Path, step: int) -> Sequence[Record]:
    path = folder / "samples" / f"step-{step:06d}.json"
    if not path.is_file():
        return ()
    try:
        items: Sequence[Record] = json.loads(path.read_text(encoding="utf-8"))["items"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of samples: {error}") from error
    return items
