"""The HTML page: what is shown, in which order; how it looks is in ``page.html``."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmalign.report.comparison import compared, grid, table
from mmalign.report.curves import panels
from mmalign.report.pictures import digest, template
from mmalign.report.reading import RunRecord, read

PACKAGES = (
    "mmalign",
    "torch",
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "open_clip_torch",
)
DIVERSITY = "diversity "
"""What the summary puts before the name of a diversity."""
_SCRIPT = Path(__file__).with_name("page.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @staticmethod
    def of(record: Mapping[str, float]) -> Interval:
        """From a record of evaluations.jsonl."""
        return Interval(mean=record["mean"], low=record["low"], high=record["high"])

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A judge's line of the summary.

    Attributes:
        run: Name of the run.
        anchor: Where its section is.
        judge: Name of the judge, or of a diversity behind `DIVERSITY`.
        first: True for a run's headline judge.
        before: Score at the first evaluation.
        after: At the last one, or None.
        rise: Over the same prompts, or None.
        num_prompts: Held-out prompts.
        axis: Lower and upper end of the drawn axis.
    """

    run: str
    anchor: str
    judge: str
    first: bool
    before: Interval
    after: Interval | None
    rise: Interval | None
    num_prompts: int
    axis: tuple[float, float]

    @property
    def neutral(self) -> bool:
        """Whether more is neither better nor worse."""
        return self.judge.startswith(DIVERSITY)

    def at(self, value: float) -> float:
        """Where ``value`` is on the axis, in per cent."""
        low, high = self.axis
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def write(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one HTML file that needs nothing beside it.

    Args:
        run_dirs: Folders of runs; each becomes a section.
        out: The file.

    Returns:
        ``out``.

    Raises:
        ValueError: A folder holds no run, or a file in it is malformed.
    """
    runs = [read(Path(folder)) for folder in run_dirs]
    if not runs:
        raise ValueError("a report needs the folder of at least one run")
    sections = [_section(run, number) for number, run in enumerate(runs)]
    script = _SCRIPT.read_text("utf-8") if any(one["compared"] for one in sections) else ""
    page = template("page.html").render(
        scores=[score for number, run in enumerate(runs) for score in scores(run, number)],
        sections=sections,
        versions=_versions(),
        script=Markup(script),  # ours, and the only one that the page's policy lets run
        script_digest=digest(script),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def scores(run: RunRecord, number: int) -> list[Score]:
    """What each judge said before and after, and what each diversity made of the samples."""
    if not run.evaluations:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]
    several = len(run.evaluations) > 1
    rises = last.get("paired", {})
    lines = [
        (name, record, last["judge"][name], rises.get(name))
        for name, record in first["judge"].items()
    ]
    for name, record in first.get("diversity", {}).items():
        after = last["diversity"][name]
        lines.append((f"{DIVERSITY}{name}", record, after, after.get("change")))
    found: list[Score] = []
    for name, record, last_record, rise in lines:
        before = Interval.of(record)
        after_or_none = Interval.of(last_record) if several else None
        found.append(
            Score(
                run=run.name,
                anchor=f"run-{number}",
                judge=name,
                first=not found,
                before=before,
                after=after_or_none,
                rise=None if rise is None else Interval.of(rise),
                num_prompts=record["num_prompts"],
                axis=_axis([before, after_or_none or before]),
            )
        )
    return found


def _axis(shown: Sequence[Interval]) -> tuple[float, float]:
    """0 to 1 where everything lies between, else what is shown with a margin."""
    ends = [v for i in shown for v in (i.mean, i.low, i.high) if math.isfinite(v)] or [0.0]
    if min(ends) >= 0 and max(ends) <= 1:
        return 0.0, 1.0
    margin = 0.15 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def _section(run: RunRecord, number: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "anchor": f"run-{number}",
        "folder": str(run.folder),
        "facts": _facts(run),
        "panels": panels(run),
        "judges": list(run.evaluations[0]["judge"]) if run.evaluations else [],
        "warnings": _warnings(run),
        "compared": compared(run),
        "grid": grid(run),
        "samples": table(run),
        "config": run.config,
        "counters": run.counters,
    }


def _warnings(run: RunRecord) -> list[str]:
    """What the last evaluation warned of."""
    if not run.evaluations:
        return []
    first, last = run.evaluations[0], run.evaluations[-1]
    return [
        f"The samples of a prompt have become alike: diversity {name} was "
        f"{first['diversity'][name]['mean']:.3g} and is {last['diversity'][name]['mean']:.3g}."
        for name in last.get("collapsed", ())
    ]


def _facts(run: RunRecord) -> dict[str, str]:
    settings = run.settings
    found: dict[str, Any] = {
        key: settings[key].get("type")
        for key in ("policy", "objective", "source", "reference")
        if isinstance(settings.get(key), dict)
    }
    policy, training = settings.get("policy"), settings.get("training")
    if isinstance(policy, dict) and "model" in policy:
        found["model"] = policy["model"]
    if run.metrics:
        found["updates"] = run.metrics[-1]["step"]
    if isinstance(training, dict) and "learning_rate" in training:
        found["learning rate"] = f"{training['learning_rate']:g}"
    if "seed" in settings:
        found["seed"] = settings["seed"]
    for record in run.notes:
        found["note"] = record["note"]
    if run.seconds:
        found["time"] = f"{run.seconds:.0f} s"
    return {key: str(value) for key, value in found.items()}


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
