"""Results as markdown tables. ``python -m benchmarks.tables`` puts them into README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def markdown(result: Mapping[str, Any]) -> str:
    """The table of one cell, with what was measured on and every refusal."""
    rate = f"{result['unit']} / {'CPU-s' if result['machine']['device'] == 'cpu' else 's'}"
    lines = [
        f"{result['title']}. {machine(result['machine'])}",
        "",
        f"| case | side | {rate} | on the wall | peak memory, MB | share of the limit "
        "| ours / this: speed | ours / this: memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, case in result["cases"].items():
        notes.append(f"{name}: {_counted(case)}.")
        notes += [f"{name}: {note}." for note in case.get("notes", ())]
        for number, (side, found) in enumerate(case["summary"].items()):
            lines.append(_row(name, side, found, is_ours=number == 0))
    return "\n".join([*lines, "", *(f"* {note}" for note in notes)])


def _counted(case: Mapping[str, Any]) -> str:
    """How often a case was measured, and why it has no ratio where it has none."""
    rounds, steps = len(case["rounds"]), case["settings"]["steps"]
    text = f"{rounds} round{'s' if rounds > 1 else ''} of {steps} timed steps"
    void = sum(bool(r["void"]) for r in case["rounds"])
    if void:
        text += f", {void} waited for the machine and {'' if case['allow_busy'] else 'not '}counted"
    if not case["summary"]:
        text += f"; no ratio, {case.get('why', 'every round was void')}"
    return text


def machine(found: Mapping[str, Any]) -> str:
    """The machine in general words."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    return f"{found['name']}, {threads}, {found['dtype']}; {versions}."


def _row(name: str, side: str, found: Mapping[str, Any], *, is_ours: bool) -> str:
    limit = "" if found["limit"] is None else f"{found['limit']:.2f}"
    ratios = ["", ""] if is_ours else [_spread(found["ratio"]), _spread(found["memory_ratio"])]
    cells = [
        name, side, f"{found['rate']:.4g}", f"{found['wall_rate']:.4g}",
        f"{found['memory'] / 2**20:.0f}", limit, *ratios,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _spread(values: list[float]) -> str:
    middle, low, high = values
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def refreshed(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with each table put between its ``results:NAME`` markers."""
    for name, table in tables.items():
        start, end = f"<!-- results:{name}:start -->\n", f"<!-- results:{name}:end -->"
        before, opened, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if opened and closed:
            text = f"{before}{start}{table}\n{end}{after}"
    return text


def main() -> None:
    """Put every table of ``results/`` into the README."""
    tables = {path.stem: path.read_text().strip() for path in (HERE / "results").glob("*.md")}
    for path in (HERE / "results").glob("*.json"):
        tables[path.stem] = markdown(json.loads(path.read_text()))
    readme = HERE / "README.md"
    readme.write_text(refreshed(readme.read_text(), tables))


if __name__ == "__main__":
    main()
