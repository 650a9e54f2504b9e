"""``mmalign data BUILDER``: preference data from prompts, answers and models."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import click

from mmalign import registry
from mmalign.commands.targets import config_file
from mmalign.config import load_builder, settings_of
from mmalign.config.schema import attribute_texts
from mmalign.data.building import construct

DRY_ROWS = 4


def command(name: str) -> click.Command | None:
    """The command of the builder ``name``; None where there is no such builder."""
    if ":" not in name and name not in registry.table("builders"):
        return None
    cls = registry.resolve("builders", name)
    return click.Command(
        name,
        help=_help(cls),
        short_help=_summary(cls),
        callback=lambda **given: build(name, **given),
        params=[
            click.Argument(["settings"], nargs=-1, metavar="[KEY=VALUE]..."),
            click.Option(
                ["--config"],
                help="A YAML file of settings, or a shipped one's name (mmalign list configs).",
            ),
            click.Option(["--data"], help="A data file: short for data.type=file data.path=FILE."),
            click.Option(
                ["--output"],
                type=click.Path(path_type=Path),
                default="pairs.jsonl",
                show_default=True,
                help="A new .jsonl file; dropped pairs and pictures go beside it.",
            ),
            click.Option(["--rows"], type=click.IntRange(1), help="Only so many rows of the data."),
            click.Option(
                ["--dry-run"],
                is_flag=True,
                help=f"Show what {DRY_ROWS} rows give, and write nothing.",
            ),
            click.Option(["--seed"], type=int, default=0, show_default=True, help="Of every draw."),
        ],
    )


def build(
    name: str,
    *,
    settings: Sequence[str],
    config: str | None,
    data: str | None,
    output: Path,
    rows: int | None,
    dry_run: bool,
    seed: int,
) -> None:
    """Construct the data and say what was kept and why the rest was not."""
    named = [] if data is None else ["data.type=file", f"data.path={json.dumps(data)}"]
    file = None if config is None else config_file(config)
    builder = load_builder(name, file, [*named, *settings])
    if dry_run:
        made = builder.prepare(seed=seed)
        for candidate in made.candidates():
            if candidate.row >= DRY_ROWS:
                break
            pair, verdict = candidate.preference, candidate.dropped or "kept"
            click.echo(f"row {candidate.row}: {verdict}\n    {pair.prompt.content!r}")
            click.echo(f"    chosen    {pair.chosen!r}\n    rejected  {pair.rejected!r}")
        click.echo(f"{len(made)} rows in all; nothing was written")
        return
    described = json.dumps([name, settings_of(builder)], sort_keys=True)
    counts = construct(builder, output, seed=seed, rows=rows, settings=described)
    kept, total = counts["kept"], counts.total()
    click.echo(f"{kept} of {total} pairs kept, in {output}")
    for reason, number in counts.most_common():
        if reason != "kept":
            click.echo(f"  {number:6} dropped: {reason}")


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _help(cls: type) -> str:
    """The first paragraph of the docstring, and the settings as it describes them."""
    texts = attribute_texts(cls)
    lines = "\n".join(f"  {key}: {text}" for key, text in texts.items())
    return f"{_summary(cls)}\n\n\b\nSettings (KEY=VALUE):\n{lines}"
