"""What a filter of a data set kept and why, on one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmalign.data.frames import strip
from mmalign.prompts import frames_of
from mmalign.report.drawing import Panel, histogram
from mmalign.report.pictures import Shown, embedded, template
from mmalign.types import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A pair shown on the page.

    Attributes:
        row: Its number in the data.
        prompt: Its text.
        chosen: The preferred output.
        rejected: The other one.
        reason: What became of it.
        values: Its numbers by name; None where it has none.
    """

    row: int
    prompt: str
    chosen: Output
    rejected: Output
    reason: str
    values: Mapping[str, float | None]

    def side(self, output: Output) -> str | Shown:
        """An output as the page shows it."""
        return output if isinstance(output, str) else embedded(strip(frames_of(output)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a page shows.

    Attributes:
        title: Of the page.
        lead: One sentence about it.
        counts: Pairs by what became of them.
        components: Name of each number, with its values over all pairs that have it, and which of
            those were kept.
        examples: Heading of each group of pairs, and the pairs.
    """

    title: str
    lead: str
    counts: Mapping[str, int]
    components: Mapping[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]
    examples: Mapping[str, Sequence[Example]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    name: str
    pool: str
    kept: str


def write_selection(selection: Selection, out: Path) -> None:
    """Write the page; one that exists is replaced."""
    lines, panels = [], []
    for name, (values, kept) in selection.components.items():
        lines.append(_Line(name=name, pool=_summary(values), kept=_summary(values[kept])))
        uri = histogram({"all": values, "kept": values[kept]})
        panels.append(Panel(title=name, uri=uri))
    page = template("selection.html").render(selection=selection, lines=lines, panels=panels)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(page.encode("utf-8", "backslashreplace"))


def _summary(values: NDArray[np.float64]) -> str:
    """Mean, and the quantiles at 5, 50 and 95 %."""
    if not len(values):
        return "none"
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"{values.mean():.3g} ({low:.3g}, {middle:.3g}, {high:.3g})"
