"""Small SVG pictures of numbers that follow the reader's light or dark theme."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLOURS = ("#3b7ddd", "#e0803a", "#3fa35c", "#a860c4", "#c64545", "#7f8a99")

_INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
_STYLE = (
    "<style>:root{color:#3c4149}@media(prefers-color-scheme:dark){:root{color:#b8bfca}}</style>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A picture of curves.

    Attributes:
        title: What it shows.
        uri: ``data:`` URI of the SVG.
    """

    title: str
    uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Means with their 95 % intervals.

    Attributes:
        name: For the legend.
        at: Where they stand on the axis.
        means: The line.
        low: Lower ends of the intervals.
        high: Upper ends.
    """

    name: str
    at: Sequence[float]
    means: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def banded(curves: Sequence[Curve], *, ticks: Sequence[int] | None = None) -> str:
    """Curves with their intervals as bands, those of infinite width left out.

    Args:
        curves: The curves.
        ticks: Numbers that the axis is to name, which is then logarithmic; None for its own.
    """
    figure, axes = new_figure()
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(curve.at, curve.means, color=colour, marker="o", markersize=3, label=curve.name)
        if all(map(math.isfinite, (*curve.low, *curve.high))):
            axes.fill_between(
                curve.at, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0
            )
    if ticks is not None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
        axes.minorticks_off()
    return finished(figure, axes)


def histogram(values: Mapping[str, NDArray[np.float64]], *, bins: int = 40) -> str:
    """Histograms over each other as a ``data:`` URI: by name, the share of the values in each bin.

    All have the bins of all values together; names without values are left out.
    """
    figure, axes = new_figure()
    given = {name: found for name, found in values.items() if len(found)}
    edges = np.histogram_bin_edges(np.concatenate(list(given.values())), bins=bins)
    for number, (name, found) in enumerate(given.items()):
        colour = COLOURS[number % len(COLOURS)]
        weights = np.full(len(found), 1 / len(found))
        axes.hist(found, bins=list(edges), weights=weights, color=colour, alpha=0.5, label=name)
    return finished(figure, axes)


def new_figure() -> tuple[Figure, Axes]:
    """An empty figure of a panel's size."""
    figure = Figure(figsize=(3.6, 2.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.margins(x=0.02)
    return figure, axes


def finished(figure: Figure, axes: Axes) -> str:
    """The drawn figure as a ``data:`` URI, with a legend where several things are named."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        legend = axes.legend(fontsize=8, frameon=False, labelcolor=_INK)
        for text in legend.get_texts():
            text.set_parse_math(False)
    buffer = io.StringIO()
    # Text stays text, which is small; a fixed salt and no date make equal curves equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmalign"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    drawn = re.sub(r"<metadata>.*?</metadata>", _STYLE, drawn, count=1, flags=re.DOTALL)
    drawn = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", drawn)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()
