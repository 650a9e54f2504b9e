"""Curves as small SVG pictures that follow the reader's light or dark theme."""

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

from mmalign.log import TIMING
from mmalign.report.reading import COUNTERS, Record, RunRecord

PANELS: tuple[tuple[str, str], ...] = (
    ("loss", r"loss(/.*)?"),
    ("sampled reward", r"rollout/reward|reward"),
    ("spread of a group's rewards", r"(rollout/)?reward_std"),
    ("sampled length, steps", r"rollout/length"),
    ("implicit rewards", r"rewards/(chosen|rejected|margins)"),
    ("share of pairs ranked right", r"rewards/accuracies"),
    ("log-probs, nats", r"log_?prob.*/.*|logps/.*"),
    ("KL to the reference, nats", r"kl(/.*)?"),
    ("gradient norm", r"grad_norm"),
)
"""Title of a panel, and the metrics it shows; each other metric has the panel of its prefix."""
HIDDEN = (TIMING, *COUNTERS, "learning_rate", "step")
MAX_POINTS = 400
SMOOTH_ABOVE = 40

_INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
_COLOURS = ("#3b7ddd", "#e0803a", "#3fa35c", "#a860c4", "#c64545", "#7f8a99")
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


def panels(run: RunRecord) -> list[Panel]:
    """The judges' scores first, then the metrics, grouped."""
    found = []
    if len(run.evaluations) > 1:
        found.append(Panel(title="judge score, 95 % interval", uri=_judges(run.evaluations)))
    for title, names in grouped(run.metrics).items():
        found.append(Panel(title=title, uri=_metrics(run.metrics, names)))
    return found


def grouped(metrics: Sequence[Record]) -> dict[str, list[str]]:
    """The names of the metrics to draw, by panel; what is 0 throughout is not drawn."""
    names = {k for r in metrics for k, v in r.items() if isinstance(v, int | float)}
    shown = sorted(n for n in names if not n.startswith(HIDDEN) and any(r.get(n) for r in metrics))
    found: dict[str, list[str]] = {}
    for title, pattern in PANELS:
        if matching := [n for n in shown if re.fullmatch(pattern, n)]:
            found[title] = matching
    placed = {n for group in found.values() for n in group}
    for name in shown:
        if name not in placed:
            found.setdefault(name.rpartition("/")[0] or name, []).append(name)
    return found


def _judges(evaluations: Sequence[Record]) -> str:
    figure, axes = _figure()
    steps = [r["step"] for r in evaluations]
    for number, name in enumerate(evaluations[0]["judge"]):
        records: list[Mapping[str, float]] = [r["judge"][name] for r in evaluations]
        colour = _COLOURS[number % len(_COLOURS)]
        means = [r["mean"] for r in records]
        axes.plot(steps, means, color=colour, marker="o", markersize=3, label=name)
        low, high = [r["low"] for r in records], [r["high"] for r in records]
        if all(map(math.isfinite, (*low, *high))):
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    return _finished(figure, axes)


def _metrics(metrics: Sequence[Record], names: Sequence[str]) -> str:
    figure, axes = _figure()
    for number, name in enumerate(names):
        points = [(r["step"], float(r[name])) for r in metrics if name in r]
        colour = _COLOURS[number % len(_COLOURS)]
        label = name.rpartition("/")[2]
        thin = points[:: math.ceil(len(points) / MAX_POINTS)]
        many = len(points) > SMOOTH_ABOVE
        axes.plot(*zip(*thin, strict=True), color=colour, linewidth=1, alpha=0.3 if many else 1,
                  label=None if many else label)  # fmt: skip
        if many:
            axes.plot(*zip(*_smooth(thin), strict=True), color=colour, linewidth=1.6, label=label)
    return _finished(figure, axes)


def histogram(values: Mapping[str, NDArray[np.float64]], *, bins: int = 40) -> str:
    """Histograms over each other as a ``data:`` URI: by name, the share of the values in each bin.

    All have the bins of all values together; names without values are left out.
    """
    figure, axes = _figure()
    given = {name: found for name, found in values.items() if len(found)}
    edges = np.histogram_bin_edges(np.concatenate(list(given.values())), bins=bins)
    for number, (name, found) in enumerate(given.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        weights = np.full(len(found), 1 / len(found))
        axes.hist(found, bins=list(edges), weights=weights, color=colour, alpha=0.5, label=name)
    return _finished(figure, axes)


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A centred running mean over a tenth of the points, not-finite ones left out."""
    half = max(1, len(points) // 20)
    found = []
    for i, (step, _) in enumerate(points):
        near = [v for _, v in points[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        found.append((step, sum(near) / len(near) if near else math.nan))
    return found


def _figure() -> tuple[Figure, Axes]:
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


def _finished(figure: Figure, axes: Axes) -> str:
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
