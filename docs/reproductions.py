"""Write docs/reproductions.md from what `mmalign reproduce` found.

    python docs/reproductions.py
    mmalign reproduce mia-dpo && python docs/reproductions.py runs/reproduce

copies the outcomes in that folder to docs/reproductions/ first. Figures are those of the records;
what a claim says, and what was noted of it, is the claim's as it is now. With --check nothing is
written, and the exit status says whether the page is current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

from mmalign import registry
from mmalign.claims import table

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "reproductions.md"
RECORDS = DOCS / "reproductions"
HEAD = """\
# Reproductions

What papers claim, tried out in small: each experiment trains the shipped tiny models, minutes on
two cores, and measures them with exact judges on held-out prompts. `mmalign reproduce NAME` runs
one; this page is written from its outcomes. A claim that does not hold here is printed as such.

A claim **holds** here when every comparison under it does: the difference has the claimed sign at
every seed, and its 95 % interval over the prompts of all seeds excludes nought (where something is
to be kept: excludes a loss beyond the margin). The interval knows of prompts alone; how much
training varies is seen in the differences by seed. Where a seed gives one number, there is no
interval, and every seed has to come out. Comparisons and settings were settled while
earlier runs of the same experiments were looked at; what had not come out by then is said under
each table. Tiny models in a drawn world are evidence about the method and its code, not about the
size of the gain on a real model.
"""


def collect(folder: Path) -> None:
    """Copy the outcomes below ``folder``."""
    RECORDS.mkdir(exist_ok=True)
    for outcome in sorted(folder.glob("*/outcome.json")):
        target = RECORDS / f"{outcome.parent.name}.json"
        target.write_text(outcome.read_text("utf-8"), "utf-8")


def page() -> str:
    """The page in Markdown."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in RECORDS.glob("*.json")}
    rows = ["| claim | what it says | holds here |", "|---|---|---|"]
    for name in registry.table("claims"):
        if name in found:
            verdict = "yes" if found[name]["holds"] else "**no**"
            statement = registry.resolve("claims", name).statement
            rows.append(f"| [{name}](#{name}) | {statement} | {verdict} |")
        else:
            rows.append(f"| {name} | not run yet | |")
    parts = [HEAD, "\n".join(rows), by_objective(found.keys())]
    for name in registry.table("claims"):
        if name in found:
            parts.append(_section(name, found[name]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def by_objective(run: Collection[str]) -> str:
    """Of each registered objective the claims that train it, those with an outcome as links."""
    claims = {name: registry.resolve("claims", name) for name in registry.table("claims")}
    rows = ["## By objective", "", "| objective | tried in |", "|---|---|"]
    for objective in registry.table("objectives"):
        names = [name for name, claim in claims.items() if objective in claim.objectives]
        cells = [f"[{name}](#{name})" if name in run else f"{name} (not run yet)" for name in names]
        rows.append(f"| `{objective}` | {', '.join(cells)} |")
    return "\n".join(rows)


def _section(name: str, record: dict) -> str:
    claim = registry.resolve("claims", name)
    counts = {metric: number for metric, number in record["prompts"].items() if number > 1}
    seeds = "Seeds " + ", ".join(map(str, record["seeds"]))
    if counts:
        prompts = ", ".join(f"{number} for {metric}" for metric, number in counts.items())
        seeds += f"; held-out prompts: {prompts}"
    return (
        f"## {name}\n\n{claim.statement} ({claim.source})\n\n{table(record)}\n\n"
        f"{seeds}; the arms' values are means over the seeds."
        + (f" {claim.notes}" if claim.notes else "")
    )


def main() -> None:
    """Write the page, or compare it."""
    given = [argument for argument in sys.argv[1:] if argument != "--check"]
    if "--check" in sys.argv[1:]:
        current = PAGE.read_text("utf-8") == page()
        sys.exit(0 if current else f"{PAGE} is old: run `python docs/reproductions.py`")
    for folder in given:
        collect(Path(folder))
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
