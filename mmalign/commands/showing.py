"""``mmalign data show``, and the file that both commands are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click

from mmalign.data.reading import Place


def place(path: Path, *, images: Path | None, layout: str, columns: Sequence[str]) -> Place:
    """A data file as the command line names it.

    Raises:
        ValueError: A column is not given as OURS=THEIRS.
    """
    named = {}
    for pair in columns:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise ValueError(f"--column {pair}: write OURS=THEIRS, as in prompt=question")
        named[ours] = theirs
    return Place(path=path, images=images, format=layout, columns=named)


def show(
    source: Place, *, output: Path | None, rows: int, max_mb: int, side: int, seed: int
) -> None:
    """Write the page and say what is on it."""
    from mmalign.report.gallery import Limits, write_gallery

    stem = re.sub(r"[*?\[\]{},]+", "_", source.path.stem)  # of a pattern
    out = source.path.with_name(f"{stem}.gallery.html") if output is None else output
    limits = Limits(rows=rows, megabytes=max_mb, side=side)
    shown = write_gallery(source, out, limits=limits, seed=seed)
    click.echo(f"{shown.sentence} {out.stat().st_size / 1e6:.1f} MB, needs nothing beside it:")
    click.echo(out.resolve().as_uri())
