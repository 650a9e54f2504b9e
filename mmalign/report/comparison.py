"""Samples of the same prompts with the same draws, one evaluation beside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmalign.report.pictures import Shown, shown
from mmalign.report.reading import Record, RunRecord

THUMB = 128
"""Longest side in pixels of a picture in a grid."""
MAX_SAMPLES = 4
"""Samples of a prompt that a grid shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A prompt whose first sample is a picture, before and after, to be laid over each other.

    Attributes:
        prompt: Its text.
        before: The picture of the first evaluation.
        after: That of the last one.
        scores: By judge, before and after.
    """

    prompt: str
    before: Shown
    after: Shown
    scores: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Pictures by prompt and evaluation.

    Attributes:
        steps: Of the evaluations, the columns.
        rows: For each prompt its text and, by column, its first samples.
    """

    steps: Sequence[int]
    rows: Sequence[tuple[str, Sequence[Sequence[Shown]]]]


def compared(run: RunRecord) -> list[Compared]:
    """The prompts that were answered with pictures before and after."""
    folder = run.folder / "samples"
    found = []
    for before, after in zip(run.before, run.after, strict=False):
        if _pictured(before) and _pictured(after):
            sides = [shown(item["outputs"][0]["image"], folder) for item in (before, after)]
            scores = {n: (v[0], after["scores"][n][0]) for n, v in before["scores"].items()}
            found.append(
                Compared(prompt=before["prompt"], before=sides[0], after=sides[1], scores=scores)
            )
    return found


def grid(run: RunRecord) -> Grid | None:
    """All shown evaluations; None where that is no more than `compared` has, or no picture."""
    folder = run.folder / "samples"
    rows = []
    for items in zip_longest(*run.sampled.values()):
        if any(item is None or not _pictured(item) for item in items):
            continue
        cells = [
            [shown(o["image"], folder, side=THUMB) for o in item["outputs"][:MAX_SAMPLES]]
            for item in items
        ]
        rows.append((items[0]["prompt"], cells))
    new = len(run.sampled) != 2 or any(len(cell) > 1 for _, cells in rows for cell in cells)
    return Grid(steps=list(run.sampled), rows=rows) if rows and new else None


def table(run: RunRecord) -> list[dict[str, Any]]:
    """The other prompts, those with texts or with pictures of their own: two columns of samples."""
    folder = run.folder / "samples"
    rows = []
    for before, after in zip_longest(run.before, run.after):
        item: Record = before or after
        if _pictured(item):
            continue
        rows.append(
            {
                "prompt": item["prompt"],
                "images": [shown(name, folder) for name in item.get("images", ())],
                "before": _outputs(before, folder),
                "after": _outputs(after, folder),
            }
        )
    return rows


def _pictured(item: Record) -> bool:
    """Whether all samples are pictures, and the prompt shows none."""
    outputs, asked = item["outputs"], item.get("images", ())
    return bool(outputs) and not asked and not any(isinstance(o, str) for o in outputs)


def _outputs(item: Record | None, folder: Path) -> list[dict[str, Any]]:
    """Each output as text or picture, with its scores by judge."""
    if item is None:
        return []
    found = []
    for number, output in enumerate(item["outputs"]):
        is_text = isinstance(output, str)
        found.append(
            {
                "text": output if is_text else None,
                "picture": None if is_text else shown(output["image"], folder),
                "scores": {name: values[number] for name, values in item["scores"].items()},
            }
        )
    return found
