"""``mmalign logic``: what a loss says, and how it compares with another."""

from __future__ import annotations

import click


@click.group()
def logic() -> None:
    """Read preference losses as logical statements, and compare them.

    A loss is named as in `mmalign list objectives`, or given as a formula over M(w), M(l), R(w) and
    R(l): the policy (M) or the reference (R) produces the chosen (w) or the rejected (l) output.
    """


@logic.command("show")
@click.argument("name")
def show_logic(name: str) -> None:
    """Print what the loss NAME says: formulas, ratio and truth table."""
    from mmalign.diagnostics import describing

    click.echo("\n".join(describing.shown(name)))


@logic.command("compare")
@click.argument("first")
@click.argument("second")
@click.option("--beta", type=float, default=1.0, show_default=True, help="Of example losses.")
def compare_logic(first: str, second: str, beta: float) -> None:
    """Say which of two losses asks for more, and where they differ."""
    from mmalign.diagnostics import describing

    click.echo("\n".join(describing.contrasted(first, second, beta=beta)))
