"""The command line. Everything heavy is imported by the command that needs it.

Exit codes: 0 done; 1 a check failed or a demonstration showed no rise; 2 the user can mend it; 3
the loss was not finite; 4 stopped by a signal, resumable. Anything else is a defect, with its
traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mmalign._version import __version__
from mmalign.commands.logic import logic

OK, FAILED, USER_ERROR, NON_FINITE, INTERRUPTED = range(5)
KINDS = (
    "policies", "objectives", "references", "rewards", "selectors", "sources", "data", "builders",
    "claims", "askers", "experts", "benchmarks", "diversities",
)  # fmt: skip
FILES = "FILE is a config, a shipped config's name (mmalign list configs), or a run's folder."

target = click.argument("file")
overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
data_file = click.argument("file", type=click.Path(path_type=Path))
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="The folder that picture paths are relative to [default: the file's].",
)
format_option = click.option(
    "--format", "layout", default="auto", show_default=True, help="Whose columns the file has."
)
column_option = click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS", help="As in prompt=question."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
@click.version_option(__version__, prog_name="mmalign")
def cli(debug: bool) -> None:
    """Align generative models of every modality with preferences."""
    del debug  # read by `main`, which is where errors arrive
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mmalign").setLevel(logging.INFO)


@cli.command(epilog=FILES)
@target
@overrides
@click.option("--resume", is_flag=True, help="Continue from the newest complete checkpoint.")
def train(file: str, overrides: Sequence[str], resume: bool) -> None:
    """Train as FILE says; KEY=VALUE changes it, as in training.steps=100."""
    from mmalign.commands import running

    running.train(file, overrides, resume=resume)


@cli.command(epilog=FILES)
@target
@overrides
def check(file: str, overrides: Sequence[str]) -> None:
    """Load everything, try two batches, say what the run will need; nothing is trained."""
    from mmalign.commands import running

    if not running.check(file, overrides):
        raise SystemExit(FAILED)


@cli.command(epilog=FILES)
@target
@overrides
@click.option(
    "--num", type=click.IntRange(1), default=16, show_default=True, help="Prompts, at most."
)
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="For each.")
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be repeated.")
@click.option("--data", help="A data file whose prompts are used instead of the config's.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Prompts at a time."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="samples.jsonl",
    show_default=True,
    help="A new .jsonl file; pictures go beside it.",
)
@seed_option
def sample(
    *,
    file: str,
    overrides: Sequence[str],
    num: int,
    samples: int,
    prompts: Sequence[str],
    data: str | None,
    batch_size: int,
    output: Path,
    seed: int,
) -> None:
    """Sample from a run's aligned model, or from a config's policy as it starts."""
    from mmalign.commands import sampling

    asked = sampling.Asked(prompts=tuple(prompts), data=data, num=num)
    drawing = sampling.Drawing(samples=samples, batch_size=batch_size, seed=seed)
    sampling.sample(file, overrides, asked=asked, drawing=drawing, output=output)


@cli.command("eval", epilog=FILES)
@click.argument("file", required=False)
@overrides
@as_json
@click.option("--on", help="A benchmark (mmalign list benchmarks), or a YAML file of its settings.")
@click.option(
    "--answers",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Answers to score instead of sampling them, in the benchmark's own format.",
)
@click.option(
    "--diagnose",
    metavar="DATA",
    help="Say what training did to the likelihoods of the pairs of a data file, of `heldout` (the "
    "config's evaluation) or of `training`, and to the weights.",
)
@click.option("--num", type=click.IntRange(1), help="Only so many questions or pairs.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Of questions."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of the answers to a benchmark; 0 takes the likeliest.",
)
@seed_option
@click.option("--output", type=click.Path(path_type=Path), help="A new folder of what was found.")
def evaluate(
    *,
    file: str | None,
    overrides: Sequence[str],
    as_json: bool,
    on: str | None,
    answers: Path | None,
    diagnose: str | None,
    num: int | None,
    batch_size: int,
    temperature: float,
    seed: int,
    output: Path | None,
) -> None:
    """Judge a run's aligned model, or a config's policy as it starts.

    Without --on, the config's judges score samples of its held-out prompts. With it, the model
    answers a benchmark's questions; KEY=VALUE sets the benchmark where KEY begins with
    "on.", as in on.images=val2014. With --answers there is no FILE. With --diagnose, nothing is
    judged: see docs/guides/diagnostics.md.
    """
    from mmalign.benchmarks import AnswerDrawing
    from mmalign.commands import benchmarking, sampling

    given = [*filter(None, [file]), *overrides]
    if diagnose is not None:
        if file is None or (on, answers) != (None, None):
            raise click.UsageError("--diagnose needs FILE, and neither --on nor --answers")
        from mmalign.commands import diagnosing

        pairs = diagnosing.Asked(data=diagnose, num=num, batch_size=batch_size, seed=seed)
        diagnosing.measure(file, overrides, pairs, output=output, as_json=as_json)
    elif on is not None:
        drawing = AnswerDrawing(batch_size=batch_size, temperature=temperature, seed=seed)
        asked = benchmarking.Asked(on=on, num=num, drawing=drawing)
        benchmarking.measure(given, asked, answers=answers, output=output, as_json=as_json)
    elif file is None or (answers, num, output) != (None, None, None):
        raise click.UsageError("give FILE, or --on with FILE or --answers")
    else:
        sampling.judge(file, overrides, as_json=as_json)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="[default: RUN/report.html]")
def report(runs: Sequence[Path], output: Path | None) -> None:
    """Write one HTML file about one or several runs: table, curves, samples, config."""
    from mmalign.report import write

    out = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    click.echo(write(runs, out))


class Builders(click.Group):
    """A group whose commands are those of `data_files` and, by name, the builders."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, without importing a builder."""
        from mmalign import registry

        return [*super().list_commands(ctx), *registry.table("builders")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a builder, its settings in its help."""
        from mmalign.commands import building

        return super().get_command(ctx, cmd_name) or building.command(cmd_name)


@cli.group("data", cls=Builders)
def data_files() -> None:
    """Construct, look at and check preference data: `mmalign data NAME --help` says more."""


@data_files.command("show")
@data_file
@images_option
@format_option
@column_option
@click.option(
    "--rows", type=click.IntRange(1), default=200, show_default=True, help="Shown at most."
)
@click.option(
    "--max-mb", type=click.IntRange(1), default=40, show_default=True, help="Size of the page."
)
@click.option(
    "--side",
    type=click.IntRange(16, 2048),
    default=384,
    show_default=True,
    help="Longest side of a picture in pixels.",
)
@click.option("--output", type=click.Path(path_type=Path), help="[default: NAME.gallery.html]")
@seed_option
def show_data(
    *,
    file: Path,
    images: Path | None,
    layout: str,
    columns: Sequence[str],
    rows: int,
    max_mb: int,
    side: int,
    output: Path | None,
    seed: int,
) -> None:
    """Write a page that shows rows of FILE: pictures, prompts, how the answers differ.

    Where NAME.dropped.jsonl lies beside FILE, as a builder leaves it, its rows are shown too.
    """
    from mmalign.commands import showing

    place = showing.place(file, images=images, layout=layout, columns=columns)
    showing.show(place, output=output, rows=rows, max_mb=max_mb, side=side, seed=seed)


@data_files.command("check")
@data_file
@images_option
@format_option
@column_option
@click.option(
    "--against", type=click.Path(path_type=Path), help="A file whose prompts must not be in FILE."
)
@click.option("--model", help="Count tokens as this model does; its weights are not loaded.")
@click.option("--max-prompt-length", type=click.IntRange(1), help="In tokens, with --model.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="In tokens, with --model.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Findings printed for each reason; 0 for all.",
)
@as_json
def check_data(
    *,
    file: Path,
    images: Path | None,
    layout: str,
    columns: Sequence[str],
    against: Path | None,
    model: str | None,
    max_prompt_length: int | None,
    max_new_tokens: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """Find broken, contradictory and leaking rows of FILE; exit code 1 where one is an error."""
    from mmalign.commands import checking, showing

    place = showing.place(file, images=images, layout=layout, columns=columns)
    limits = {"max_prompt_length": max_prompt_length, "max_new_tokens": max_new_tokens}
    if not checking.check(
        place, against=against, model=model, limits=limits, limit=limit, as_json=as_json
    ):
        raise SystemExit(FAILED)


@cli.command()
@click.argument("name")
@click.option("--seeds", help="Such as 0,1,2 [default: as many as the claim asks for].")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="runs/reproduce",
    show_default=True,
    help="Folder; a seed that is already there is not run again.",
)
def reproduce(name: str, seeds: str | None, output: Path) -> None:
    """Try out a paper's claim in small; `mmalign list claims` has the names."""
    from mmalign.commands import reproducing

    try:
        numbers = [int(part) for part in (seeds or "").split(",") if part]
    except ValueError as error:
        raise click.BadParameter(f"{seeds} is no list of numbers such as 0,1,2") from error
    if not reproducing.reproduce(name, output=output, seeds=numbers):
        raise SystemExit(FAILED)


@cli.command("list")
@click.argument("kind", type=click.Choice([*KINDS, "configs"]))
@as_json
def list_names(kind: str, as_json: bool) -> None:
    """List what a config can name, or the shipped configs."""
    from mmalign.commands import listing

    listing.show(kind, as_json=as_json)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors."""
    from mmalign.commands import listing

    listing.schema()


@cli.command()
@click.option("--real", is_flag=True, help="Align SmolLM2-135M with a real sentiment scorer.")
@click.option("--only", help="Names of demonstrations, separated by commas.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder [default: a fresh one].")
@seed_option
def demo(real: bool, only: str | None, output: Path | None, seed: int) -> None:
    """Align five small models, judge them exactly and write report.html."""
    from mmalign.commands import demonstrating

    names = tuple(filter(None, (only or "").split(",")))
    if not demonstrating.demo(real=real, only=names, output=output, seed=seed):
        raise SystemExit(FAILED)


cli.add_command(logic)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; a user's mistake is one message, not a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        cli.main(args=given, prog_name="mmalign", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except Exception as error:
        code = _exit_code(error)
        if code is None or "--debug" in given[:1]:
            raise
        click.echo(f"{'stopped' if code == INTERRUPTED else 'error'}: {error}", err=True)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """The code of an error that is not a defect; None for one that is."""
    # Whoever raised the trainer's errors has imported it; nobody else has to wait for that.
    trainer = sys.modules.get("mmalign.trainer")
    if trainer is not None and isinstance(error, trainer.Interrupted):
        return INTERRUPTED
    if trainer is not None and isinstance(error, trainer.NonFinite):
        return NON_FINITE
    return USER_ERROR if isinstance(error, ValueError | OSError) else None
