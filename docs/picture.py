"""Draw docs/design.svg, the one picture of docs/design.md: `make docs-picture`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, GREY, PALE, WHITE = "#1f2733", "#66707d", "#f4f5f7", "#ffffff"
BLUE, GREEN, ORANGE = "#2f6fb3", "#2f8f5b", "#c8742b"
SIZE = (13.0, 8.6)
Point = tuple[float, float]

LOOP = [
    ("Source", "recorded preferences,\nrollouts, or both", "batch"),
    ("Credit", "rewards become pairs\nor advantages; no gradient", "credited batch"),
    ("Score", "log-probs of what was\ndone, piece by piece", "scores [B, T]"),
    ("Loss", "a sum over the piece,\ndivided by a known number", ""),
]
MODALITIES = [
    ("Text LLM", "a response token", "exact"),
    ("LVLM", "a response token;\nany number of images", "exact"),
    ("AR image", "a codebook index", "exact"),
    ("Diffusion", "a denoising move, or\none (t, noise) draw", "exact  |  bound"),
    ("Flow", "an SDE move, or\none (t, noise) draw", "exact  |  bound"),
]


def box(ax: Axes, corner: Point, size: Point, *, face: str, edge: str, width: float = 1.2) -> None:
    """A rounded rectangle; ``corner`` is its lower left."""
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=face, ec=edge, lw=width))


def arrow(ax: Axes, start: Point, end: Point, *, colour: str = INK, bend: float = 0.0) -> None:
    """An arrow from ``start`` to ``end``."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=14,
            lw=1.5,
            color=colour,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )


def words(
    ax: Axes, at: Point, text: str, *, size: float = 10, colour: str = INK, **style: Any
) -> None:
    """Text centred at ``at`` unless ``style`` says otherwise."""
    options = {"ha": "center", "va": "center", **style}
    ax.text(*at, text, fontsize=size, color=colour, linespacing=1.35, **options)


def draw_loop(ax: Axes) -> None:
    """The upper band: the four stations of the loop."""
    box(ax, (0.2, 5.75), (12.6, 2.65), face=PALE, edge=PALE)
    words(ax, (0.45, 8.13), "One loop, blind to the modality", size=12.5, ha="left", weight="bold")
    for i, (title, text, passes_on) in enumerate(LOOP):
        x = 0.45 + i * 3.25
        box(ax, (x, 6.4), (2.35, 1.3), face=WHITE, edge=BLUE)
        words(ax, (x + 1.175, 7.42), title, size=12, colour=BLUE, weight="bold")
        words(ax, (x + 1.175, 6.88), text, size=9.2)
        if passes_on:
            arrow(ax, (x + 2.38, 7.05), (x + 3.22, 7.05))
            words(ax, (x + 2.79, 7.28), passes_on.replace(" ", "\n", 1), size=7.8, colour=GREY)
    # Back from the loss to the source: the update.
    ax.plot([11.37, 11.37, 1.9], [6.4, 6.03, 6.03], color=INK, lw=1.5, solid_joinstyle="round")
    arrow(ax, (1.9, 6.03), (1.9, 6.38))
    words(ax, (5.0, 6.17), "clip, step, log, checkpoint; the next batch", size=8.6, colour=GREY)


def draw_trajectory(ax: Axes) -> None:
    """The middle: what flows between the bands."""
    words(ax, (6.5, 5.28), "Trajectory", size=12, weight="bold", colour=GREEN)
    words(ax, (6.5, 5.0), "everything chance decided, recorded", size=8.8, colour=GREY)
    rows = [(8, "reward 1"), (6, "reward 0")]
    for r, (length, reward) in enumerate(rows):
        y = 4.5 - 0.42 * r
        words(ax, (4.42, y + 0.15), f"row {r}", size=8.4, colour=GREY, ha="right")
        for t in range(9):
            face = GREEN if t < length else WHITE
            shade = 0.85 - 0.07 * ((t * 5 + r * 3) % 7)
            ax.add_patch(
                Rectangle((4.55 + 0.4 * t, y), 0.36, 0.3, fc=face, ec=GREEN, lw=0.8, alpha=shade)
            )
        words(ax, (8.25, y + 0.15), reward, size=8.4, colour=GREY, ha="left")
    words(ax, (6.35, 3.9), "steps t = 1 .. T   (empty: masked)", size=8.4, colour=GREY)
    box(ax, (9.85, 3.98), (2.7, 1.45), face=WHITE, edge=GREY)
    words(ax, (11.2, 5.13), "Reference", size=11, colour=INK, weight="bold")
    words(
        ax,
        (11.2, 4.5),
        "frozen copy, LoRA off,\nnamed LoRA, or on disk;\nscored once, before credit",
        size=9,
    )


def draw_adapters(ax: Axes) -> None:
    """The lower band: one card per modality."""
    box(ax, (0.2, 0.2), (12.6, 3.05), face=PALE, edge=PALE)
    words(ax, (0.45, 2.96), "Adapters: the only code that knows a modality", size=12.5, ha="left",
          weight="bold")  # fmt: skip
    words(ax, (12.55, 2.96), "encode    sample    scores    save", size=10, ha="right",
          colour=ORANGE, family="monospace")  # fmt: skip
    for i, (title, step, likelihood) in enumerate(MODALITIES):
        x = 0.45 + i * 2.46
        box(ax, (x, 0.45), (2.26, 2.2), face=WHITE, edge=ORANGE)
        words(ax, (x + 1.13, 2.35), title, size=11.5, weight="bold", colour=ORANGE)
        words(ax, (x + 1.13, 1.98), "one step is", size=8.4, colour=GREY)
        words(ax, (x + 1.13, 1.55), step, size=9.6)
        words(ax, (x + 1.13, 0.98), "likelihood", size=8.4, colour=GREY)
        words(ax, (x + 1.13, 0.7), likelihood, size=9.6)


def draw_links(ax: Axes) -> None:
    """Who calls whom between the bands."""
    arrow(ax, (1.25, 6.38), (1.25, 3.28), colour=ORANGE)
    words(
        ax, (1.42, 4.57), "encode recorded data,\nsample new data", size=9, ha="left", colour=ORANGE
    )
    arrow(ax, (3.15, 4.57), (3.85, 4.57), colour=GREEN)
    arrow(ax, (9.25, 6.38), (9.25, 3.28), colour=ORANGE)
    words(ax, (9.1, 3.62), "scores", size=9, ha="right", colour=ORANGE)
    arrow(ax, (11.2, 3.96), (11.2, 3.28), colour=ORANGE)
    words(ax, (11.35, 3.63), "scores, no gradient", size=9, ha="left", colour=ORANGE)


def main() -> None:
    """Write the picture to the path given, or to docs/design.svg."""
    # A fixed salt and no date: the same script gives the same file.
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "mmalign"})
    figure, ax = plt.subplots(figsize=SIZE)
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
    ax.axis("off")
    for part in (draw_loop, draw_trajectory, draw_adapters, draw_links):
        part(ax)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("design.svg")
    metadata = {"Date": None} if target.suffix == ".svg" else {}
    figure.savefig(target, facecolor=WHITE, metadata=metadata)


if __name__ == "__main__":
    main()
