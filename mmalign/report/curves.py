"""The curves of a run: what evaluations found, and the metrics in groups."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import stdev

from mmalign.evaluation import Z95
from mmalign.log import TIMING
from mmalign.report.drawing import COLOURS, Panel, finished, new_figure
from mmalign.report.evaluations import evaluation_panels
from mmalign.report.reading import COUNTERS, Record, RunRecord

REWARD = "sampled reward"
PANELS: tuple[tuple[str, str], ...] = (
    ("loss", r"loss(/.*)?"),
    (REWARD, r"rollout/reward|reward"),
    ("spread of a group's rewards", r"(rollout/)?reward_std"),
    ("sampled length, steps", r"rollout/length"),
    ("implicit rewards", r"rewards/(chosen|rejected|margins)"),
    ("share of pairs ranked right", r"rewards/accuracies"),
    ("log-probs, nats", r"log_?prob.*/.*|logps/.*"),
    ("KL to the reference, nats", r"kl(/.*)?"),
    ("gradient norm", r"grad_norm"),
    ("the 10 likeliest symbols: mass, and entropy in bits", r"top_k/.*"),
)
"""Title of a panel, and the metrics it shows; each other metric has the panel of its prefix."""
HIDDEN = (TIMING, *COUNTERS, "learning_rate", "step")
MAX_POINTS = 400
SMOOTH_ABOVE = 40


def panels(run: RunRecord) -> list[Panel]:
    """What evaluations found first, then the metrics, grouped."""
    found = evaluation_panels(run.evaluations)
    for title, names in grouped(run.metrics).items():
        reward = title == REWARD
        many = reward and len(run.metrics) > SMOOTH_ABOVE
        shown = f"{title}: running mean, 95 % interval" if many else title
        found.append(Panel(title=shown, uri=_metrics(run.metrics, names, interval=reward)))
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


def _metrics(metrics: Sequence[Record], names: Sequence[str], *, interval: bool) -> str:
    figure, axes = new_figure()
    for number, name in enumerate(names):
        points = [(r["step"], float(r[name])) for r in metrics if name in r]
        colour = COLOURS[number % len(COLOURS)]
        label = name.rpartition("/")[2]
        if sum(other.rpartition("/")[2] == label for other in names) > 1:
            label = name
        thin = points[:: math.ceil(len(points) / MAX_POINTS)]
        many = len(points) > SMOOTH_ABOVE
        axes.plot(*zip(*thin, strict=True), color=colour, linewidth=1, alpha=0.3 if many else 1,
                  label=None if many else label)  # fmt: skip
        if many:
            steps, means, low, high = zip(*_smooth(thin), strict=True)
            axes.plot(steps, means, color=colour, linewidth=1.6, label=label)
            if interval:
                axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    return finished(figure, axes)


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float, float, float]]:
    """A centred running mean over a tenth of the points with its 95 % interval over them.

    Values that are not finite are left out; a mean of none is not a number, and one of fewer than
    two has no interval.
    """
    half = max(1, len(points) // 20)
    found = []
    for i, (step, _) in enumerate(points):
        near = [v for _, v in points[max(0, i - half) : i + half + 1] if math.isfinite(v)]
        mean = sum(near) / len(near) if near else math.nan
        several = len(near) > 1
        width = Z95 * stdev(near) / math.sqrt(len(near)) if several else math.nan
        found.append((step, mean, mean - width, mean + width))
    return found
