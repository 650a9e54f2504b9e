"""Curves of what evaluations found: judges, the best of several samples, diversity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmalign.report.drawing import Curve, Panel, banded
from mmalign.report.reading import Record


def evaluation_panels(evaluations: Sequence[Record]) -> list[Panel]:
    """A panel for each judge, for its best of n, and for each diversity."""
    return list(_panels(evaluations)) if evaluations else []


def _panels(evaluations: Sequence[Record]) -> Iterator[Panel]:
    first, last = evaluations[0], evaluations[-1]
    several = len(evaluations) > 1
    steps = [record["step"] for record in evaluations]
    if several:
        for name in first["judge"]:
            records = [record["judge"][name] for record in evaluations]
            yield Panel(title=f"judge {name}, 95 % interval", uri=banded([_curve(steps, records)]))
    for name, record in first["judge"].items():
        if "best_of" in record:
            curves = [_best_of("before", record["best_of"])]
            if several:
                curves.append(_best_of("after", last["judge"][name]["best_of"]))
            ticks = [best["n"] for best in record["best_of"]]
            yield Panel(title=f"{name}: best of n samples", uri=banded(curves, ticks=ticks))
    if several:
        for name in first.get("diversity", {}):
            records = [record["diversity"][name] for record in evaluations]
            title = f"diversity of samples ({name}), 95 % interval"
            yield Panel(title=title, uri=banded([_curve(steps, records)]))


def _best_of(name: str, records: Sequence[Mapping[str, float]]) -> Curve:
    return _curve([record["n"] for record in records], records, name=name)


def _curve(at: Sequence[float], records: Sequence[Mapping[str, float]], *, name: str = "") -> Curve:
    means, low, high = ([record[key] for record in records] for key in ("mean", "low", "high"))
    return Curve(name=name, at=at, means=means, low=low, high=high)
