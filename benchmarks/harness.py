"""The protocol of every benchmark: same mathematics first, then interleaved fresh processes.

A cell is a `Cell`; ``main(cell)`` gives its module a command line. Called plainly, the module
prepares weights and rows once a case, runs every side in a process of its own, round after round
and every other round in reversed order, and writes ``results/NAME.json``. Called with ``--side`` it
is such a process.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Measured, Product, limit_seconds, peaks
from benchmarks.tables import markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BUSY = 1.3
MIN_STEPS = 4
MOVES = 1e-3
"""Losses that move less say nothing by agreeing."""
ROUNDING = {"float32": 1.0, "bfloat16": 2000.0}
"""How much coarser than a cell's tolerance losses may be in a precision."""
LIMIT = "limit"
LIBRARIES = ("torch", "transformers", "trl", "diffusers", "accelerate")

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Something that several tools can do, and how to have them do exactly the same.

    Attributes:
        name: Of the module in this package that calls `main` with it.
        title: One line over the table.
        unit: What is counted: "tokens", "images", "pairs".
        cases: Settings by the name of a row; a list under ``sides`` restricts a case to some, and
            ``device`` names the only kind of device that runs it unasked (``cpu`` by default).
        sides: How each tool does it, ours first: from the case's settings, in which ``folder`` is
            what was prepared, and ``steps`` (timed ones; one more warms up), ``threads``,
            ``device`` and ``dtype`` come from the command line.
        prepare: Writes weights and rows that all sides read into a folder.
        work: The products that no side can do without; None where no limit is known.
        quick: Settings that make a case tiny, to try the code.
        tolerance: How far losses of two sides may lie apart; None for a cell without losses.
    """

    name: str
    title: str
    unit: str
    cases: Mapping[str, Settings]
    sides: Mapping[str, Callable[[Settings], Measured]]
    prepare: Callable[[Settings, Path], None]
    work: Callable[[Settings], list[Product]] | None = None
    quick: Settings = field(default_factory=dict)
    tolerance: float | None = 1e-5


def disagreement(
    losses: Mapping[str, Sequence[float]], *, tolerance: float, min_steps: int = MIN_STEPS
) -> str | None:
    """Why the sides cannot be said to do the same mathematics; None where they do.

    Every trace must have ``min_steps`` optimizer steps, must move, and lie within the tolerance of
    the first side's (relative where that is above 1).
    """
    first, *others = losses
    reference = losses[first]
    if len(reference) < min_steps:
        return f"{first} has {len(reference)} losses, and {min_steps} steps are needed"
    if max(reference) - min(reference) < MOVES:
        return f"the losses of {first} do not move, so their agreement says nothing"
    for name in others:
        if len(losses[name]) != len(reference):
            return f"{name} made {len(losses[name])} steps, {first} {len(reference)}"
        gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(reference, losses[name], strict=True)]
        # Written so that a loss that is not a number refuses too.
        if not all(gap <= tolerance for gap in gaps):
            worst = max(gaps, key=lambda gap: (gap != gap, gap))
            return f"losses of {name} and {first} differ by {worst:.2g}, allowed {tolerance:g}"
    return None


def is_busy(side: Mapping[str, Any], *, device: str) -> bool:
    """Whether the process waited for the machine too long for its measurement to be believed."""
    return device == "cpu" and sum(side["wall"]) > BUSY * sum(side["seconds"])


def summary(case: Mapping[str, Any]) -> dict[str, Any]:
    """Medians over the rounds that count, and the median and range of the rounds' ratios.

    A ratio is ours over the other's: of speed, above 1 where ours is faster; of memory, below 1
    where ours needs less.
    """
    rounds = [r for r in case["rounds"] if case["allow_busy"] or not r["void"]]
    if not rounds:
        return {}
    ours, found = next(iter(rounds[0]["sides"])), {}
    for name in rounds[0]["sides"]:
        sides = [(r["sides"][ours], r["sides"][name], r["limit_seconds"]) for r in rounds]
        ratios = [_rate(mine) / _rate(other) for mine, other, _ in sides]
        memory = [mine["memory"] / max(1, other["memory"]) for mine, other, _ in sides]
        limits = [limit / _seconds(other) for _, other, limit in sides if limit is not None]
        found[name] = {
            "rate": statistics.median(_rate(other) for _, other, _ in sides),
            "wall_rate": statistics.median(
                other["units"] / statistics.median(other["wall"]) for _, other, _ in sides
            ),
            "memory": statistics.median(other["memory"] for _, other, _ in sides),
            "limit": statistics.median(limits) if limits else None,
            "ratio": _spread(ratios),
            "memory_ratio": _spread(memory),
        }
    return found


def _seconds(side: Mapping[str, Any]) -> float:
    return statistics.median(side["seconds"])


def _rate(side: Mapping[str, Any]) -> float:
    return float(side["units"]) / _seconds(side)


def _spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def main(cell: Cell, arguments: Sequence[str] | None = None) -> None:
    """The command line of a cell's module.

    Raises:
        SystemExit: With 1 where a case gave no ratio: losses differ, or every round was void.
    """
    options = _options(cell, arguments)
    torch.set_num_threads(options.threads)
    if options.side is not None:
        settings = json.loads(options.settings)
        Path(options.json).write_text(json.dumps(_side(cell, options.side, settings)))
        return
    common = {k: getattr(options, k) for k in ("steps", "threads", "device", "dtype")}
    quick = {**cell.quick, "quick": True} if options.quick else {}
    result = _so_far(cell, _machine(common), Path(options.output))
    unasked = [k for k, v in cell.cases.items() if v.get("device", "cpu") == options.device]
    names = options.case or unasked
    for name in names:
        settings = {**cell.cases[name], **common, **quick}
        if options.only:
            settings["sides"] = options.only
        case = _run_case(cell, name, settings, rounds=options.rounds)
        case["allow_busy"] = options.allow_busy
        case["summary"] = summary(case) if case["agree"] else {}
        found = {**result["cases"], name: case}
        result["cases"] = {k: found[k] for k in cell.cases if k in found}
        _write(result, Path(options.output))
    print(markdown(result))
    if not all(result["cases"][name]["summary"] for name in names):
        raise SystemExit(1)


def _so_far(cell: Cell, machine: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Cases measured before on such a machine stay in the file; one that is run again does not."""
    cases: dict[str, Any] = {}
    if output.exists():
        before = json.loads(output.read_text())
        cases = before["cases"] if before["machine"] == machine else {}
    return {
        "cell": cell.name, "title": cell.title, "unit": cell.unit, "machine": machine,
        "cases": cases,
    }  # fmt: skip


def _write(result: Mapping[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")


def _options(cell: Cell, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{cell.name}")
    parser.add_argument("--case", action="append", choices=list(cell.cases), help="some cases only")
    parser.add_argument("--only", action="append", choices=list(cell.sides), help="some sides only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps; one more warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quick", action="store_true", help="tiny settings, to try the code")
    parser.add_argument("--allow-busy", action="store_true", help="count void rounds, marked")
    parser.add_argument("--output", default=str(RESULTS / f"{cell.name}.json"))
    parser.add_argument("--side", choices=(*cell.sides, LIMIT), help="be the process of one side")
    parser.add_argument("--settings", help="of that process, as JSON")
    parser.add_argument("--json", help="where that process writes what it measured")
    return parser.parse_args(arguments)


def _side(cell: Cell, side: str, settings: Settings) -> dict[str, Any]:
    if side != LIMIT:
        return asdict(cell.sides[side](settings))
    if cell.work is None:
        return {"peaks": {}, "limit_seconds": None}
    products = cell.work(settings)
    dtype = getattr(torch, settings["dtype"])
    found = peaks(products, device=settings["device"], dtype=dtype)
    return {"peaks": found, "limit_seconds": limit_seconds(products, found)}


def _run_case(cell: Cell, name: str, settings: Settings, *, rounds: int) -> dict[str, Any]:
    sides = settings.get("sides", list(cell.sides))
    case: dict[str, Any] = {"settings": settings, "rounds": [], "agree": True}
    with tempfile.TemporaryDirectory() as folder:
        cell.prepare(settings, Path(folder))
        for number in range(rounds):
            order = sides if number % 2 == 0 else sides[::-1]
            limit = _child(cell, LIMIT, settings, folder)
            found = {side: _child(cell, side, settings, folder) for side in order}
            busy = [s for s in order if is_busy(found[s], device=settings["device"])]
            measured = {side: found[side] for side in sides}
            case["rounds"].append({"sides": measured, "order": order, "void": busy, **limit})
            _report(name, number, measured, busy)
            if cell.tolerance is not None:
                losses = {side: found[side]["losses"] for side in sides}
                allowed = cell.tolerance * ROUNDING[settings["dtype"]]
                why = disagreement(losses, tolerance=allowed)
                if why is not None:
                    print(f"{name}: no ratio, {why}", file=sys.stderr)
                    for side, trace in losses.items():
                        print(f"  {side}: {trace}", file=sys.stderr)
                    return {**case, "agree": False, "why": why}
    return case


def _child(cell: Cell, side: str, settings: Settings, folder: str) -> dict[str, Any]:
    """What a side measures in a fresh process."""
    threads = str(settings["threads"])
    environment = {
        **os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "measured.json"
        command = [
            sys.executable, "-m", f"benchmarks.{cell.name}", "--side", side, "--threads", threads,
            "--settings", json.dumps({**settings, "folder": folder, "scratch": scratch}),
            "--json", str(target),
        ]  # fmt: skip
        with _alone(wait=not settings.get("quick", False)):
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True
            )
        if done.returncode != 0:
            raise RuntimeError(f"{cell.name}, side {side} failed:\n{done.stderr[-4000:]}")
        return dict(json.loads(target.read_text()))


@contextmanager
def _alone(*, wait: bool) -> Iterator[None]:
    """One measurement at a time on this machine, however many benchmarks are running."""
    with (Path(tempfile.gettempdir()) / "mmalign-benchmarks.lock").open("w") as lock:
        if wait:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _report(name: str, number: int, sides: Mapping[str, Any], busy: Sequence[str]) -> None:
    parts = [
        f"{side} {_rate(found):.0f}/s {found['memory'] / 2**20:.0f} MB"
        for side, found in sides.items()
    ]
    note = f", void: {', '.join(busy)} waited for the machine" if busy else ""
    print(f"{name}, round {number + 1}: {'; '.join(parts)}{note}", file=sys.stderr)


def _machine(common: Mapping[str, Any]) -> dict[str, Any]:
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except ModuleNotFoundError:
            continue
    name = f"{os.cpu_count()} cores"
    if common["device"] == "cuda":
        name = torch.cuda.get_device_name()
    kept = {k: common[k] for k in ("threads", "device", "dtype")}
    return {"name": name, **kept, "versions": versions}
