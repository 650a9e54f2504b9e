"""``mmalign reproduce``: a paper's claim, tried out in small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from mmalign import registry
from mmalign.claims import Claim, record_of, run_claim, table


def reproduce(name: str, *, output: Path, seeds: Sequence[int]) -> bool:
    """Run a claim's experiment and print what came out; returns whether the claim holds here.

    Raises:
        ValueError: No such claim.
    """
    claim = find(name)
    numbers = list(seeds) or list(range(claim.seeds))
    click.echo(f"{claim.statement} ({claim.source})")
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    record = {"seeds": numbers, **record_of(claim, run_claim(claim, folder, numbers))}
    (folder / "outcome.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    click.echo(table(record))
    click.echo(f"\n{'holds' if record['holds'] else 'does not hold'} here; see {folder}")
    return bool(record["holds"])


def find(name: str) -> Claim:
    """The claim called ``name``.

    Raises:
        ValueError: There is none, or it is no claim.
    """
    found = registry.resolve("claims", name)
    if not isinstance(found, Claim):
        raise ValueError(f"{name} is a {type(found).__name__}, not a claim")
    return found
