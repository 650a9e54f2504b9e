"""FiFA's page: how many pairs were kept, how their numbers differ, and examples of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmalign.diffusion.fifa.choosing import REASONS, Choice
from mmalign.diffusion.fifa.scoring import Scored
from mmalign.report.selection import Example, Selection, write_selection
from mmalign.types import Preference

SHOWN = 8


def write_report(out: Path, data: Sequence[Preference], found: Scored, choice: Choice) -> None:
    """Write the page.

    Args:
        out: The file; one that exists is replaced.
        data: The pairs; some of them are read again to be shown.
        found: What the reward said of them.
        choice: What became of them.
    """
    total = len(choice.reason)
    kept = choice.reason == 0
    pool = choice.rank > 0
    numbers = np.bincount(choice.reason, minlength=len(REASONS))
    against = (found.margin < 0).mean(), (found.margin[kept] < 0).mean()
    columns = {
        "margin": found.margin,
        "quality": choice.quality,
        "entropy": choice.entropy,
        "score": choice.importance,
    }

    def examples(rows: NDArray[np.int64]) -> list[Example]:
        return [_example(data[row], row, found, choice) for row in rows.tolist()]

    order = np.argsort(np.where(pool, choice.rank, total + 1), kind="stable")
    inside = order[: int(pool.sum())]
    best, left = inside[kept[inside]], inside[~kept[inside]]
    flawed = [np.flatnonzero(choice.reason == n)[:2] for n in range(3, len(REASONS))]
    groups = {
        "Kept, the most important": best[:SHOWN],
        "Kept, the least important": best[SHOWN:][-SHOWN:],
        "Left out, the most important": left[:SHOWN],
        "Left out, the least important": left[SHOWN:][-SHOWN:],
        "Never to choose from": np.concatenate(flawed),
    }
    selection = Selection(
        title="FiFA: what was kept",
        lead=(
            f"{int(kept.sum())} of {total} pairs were kept. The reward contradicts the label of "
            f"{against[0]:.1%} of all pairs and of {against[1]:.1%} of the kept ones."
        ),
        counts={r: int(n) for r, n in zip(REASONS, numbers, strict=True) if n},
        components={name: (values[pool], kept[pool]) for name, values in columns.items()},
        examples={heading: examples(rows) for heading, rows in groups.items() if len(rows)},
    )
    write_selection(selection, out)


def _example(pair: Preference, row: int, found: Scored, choice: Choice) -> Example:
    pool = bool(choice.rank[row])
    values: dict[str, float | None] = {"margin": float(found.margin[row])}
    for name, column in (
        ("quality", choice.quality),
        ("entropy", choice.entropy),
        ("score", choice.importance),
    ):
        values[name] = float(column[row]) if pool else None
    return Example(
        row=row,
        prompt=found.texts[found.text[row]],
        chosen=pair.chosen,
        rejected=pair.rejected,
        reason=REASONS[choice.reason[row]],
        values=values,
    )
