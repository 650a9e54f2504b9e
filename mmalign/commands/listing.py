"""``mmalign list`` and ``mmalign schema``."""

from __future__ import annotations

import json

import click

from mmalign import registry
from mmalign.locate import configs


def show(kind: str, *, as_json: bool) -> None:
    """Print the names of a kind with what they stand for."""
    found = shipped_configs() if kind == "configs" else registry.table(kind)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    width = max((len(name) for name in found), default=0)
    for name, meaning in found.items():
        click.echo(f"{name:{width}}  {meaning}")


def shipped_configs() -> dict[str, str]:
    """The shipped configs, by their name on the command line, with the comment they begin with."""
    root = configs()
    found = {}
    for path in sorted(root.rglob("*.yaml")):
        about = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            about.append(line.removeprefix("#").strip())
        found[path.relative_to(root).with_suffix("").as_posix()] = " ".join(about)
    return found


def schema() -> None:
    """Print the JSON Schema of configs."""
    from mmalign.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
