"""``mmalign train`` and ``mmalign check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from mmalign import distributed
from mmalign.commands.targets import load_run
from mmalign.log import RunFolder


def train(name: str, overrides: Sequence[str], *, resume: bool) -> None:
    """Train, then say where the model is and what the judges think."""
    # Imports accelerate, which `mmalign --help` does not have to wait for.
    from mmalign import invariants

    run = load_run(name, overrides)
    trainer = run.build()
    note = invariants.meaning_of_beta(run.objective, likelihood=trainer.policy.likelihood)
    if note is not None and distributed.is_main():
        click.echo(note)
    model = trainer.train(resume=resume)
    if not distributed.is_main():
        return
    for line in rises(Path(run.output)):
        click.echo(line)
    click.echo(f"the aligned model is in {model}")


def rises(folder: Path) -> list[str]:
    """One line a judge: the score before and after, and the rise with its 95 % interval."""
    records = RunFolder(folder).read("evaluations.jsonl")
    if len(records) < 2:
        return []
    first, last = records[0]["judge"], records[-1]["judge"]
    lines = []
    for name, after in last.items():
        line = f"{name}: {first[name]['mean']:.3f} -> {after['mean']:.3f}"
        rise = records[-1].get("paired", {}).get(name)
        if rise is not None:
            line += f", rise {rise['mean']:+.3f} [{rise['low']:+.3f}, {rise['high']:+.3f}]"
        lines.append(f"{line} on {after['num_prompts']} prompts")
    return lines


def check(name: str, overrides: Sequence[str]) -> bool:
    """Print the preflight table; returns whether every line holds."""
    # Imports accelerate, which `mmalign --help` does not have to wait for.
    from mmalign import preflight

    trainer = load_run(name, overrides).build()
    lines = preflight.check(trainer, batches=2)
    if distributed.is_main():
        width = max(len(line.name) for line in lines)
        for line in lines:
            mark = click.style("ok  ", fg="green") if line.ok else click.style("FAIL", fg="red")
            click.echo(f"{mark}  {line.name:{width}}  {line.detail}")
    return all(line.ok for line in lines)
