"""``mmalign eval RUN --diagnose DATA``: what training did to a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from mmalign import config, references, rng
from mmalign.benchmarks import Measured, write_lines
from mmalign.build import policy_of
from mmalign.commands.benchmarking import lines
from mmalign.commands.targets import load_policy, load_run
from mmalign.data import File
from mmalign.diagnostics.measuring import Settings, diagnose
from mmalign.objectives.pair import PairObjective
from mmalign.policy import Policy
from mmalign.protocols import Reference
from mmalign.run import DataSpec, Run
from mmalign.types import Preference

HELDOUT, TRAINING = "heldout", "training"
"""Words for the data of the config's evaluation, and of its source, in place of a file."""
DEFAULT_BETA = 0.1
LEAST_SHOWN = 5
"""How many layers are printed, from the least sparse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which pairs a policy is diagnosed with, and how.

    Attributes:
        data: A data file, or one of the words above.
        num: At most so many pairs, from the first; None for all.
        batch_size: At a time; changes no number.
        seed: Of what is drawn.
    """

    data: str
    num: int | None = None
    batch_size: int = 32
    seed: int = 0


def measure(
    name: str, overrides: Sequence[str], asked: Asked, *, output: Path | None, as_json: bool
) -> None:
    """Print what became of a policy, and write it and a row for each pair into ``output``.

    Args:
        name: A run's folder, or a config, whose policy is then as it starts.
        overrides: Of the config.
        asked: Which pairs.
        output: A new folder, or None.
        as_json: Whether to print JSON.

    Raises:
        ValueError: The folder exists, or there are no pairs.
    """
    if output is not None and output.exists():
        raise ValueError(f"{output} exists already; choose another folder or remove it")
    run = load_run(name, overrides)
    pairs = pairs_of(run, asked)
    policy = load_policy(name, run)
    start, reference = beginning(run, policy.device)
    settings = Settings(beta=beta_of(run), batch_size=asked.batch_size, seed=asked.seed)
    report = diagnose(policy, reference, pairs, start=start, settings=settings)
    record = {
        "model": name, "asked": asdict(asked), "beta": settings.beta, **report.record(),
        "config": config.resolved(run),
    }  # fmt: skip
    if output is not None:
        write_lines(output / "rows.jsonl", report.rows)
        (output / "report.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    if as_json:
        click.echo(json.dumps({k: v for k, v in record.items() if k != "config"}))
        return
    layers = sorted(report.categories.items(), key=lambda item: _moved(item[1]))
    shown = replace(report, categories=dict(layers[:LEAST_SHOWN]))
    click.echo("\n".join(lines(shown)))
    click.echo(f"the {len(shown.categories)} of {len(layers)} layers that changed most are shown")


def pairs_of(run: Run, asked: Asked) -> Sequence[Preference]:
    """The pairs that are asked for.

    Raises:
        ValueError: The config has no such data, or a file is wrong.
    """
    if asked.data not in (HELDOUT, TRAINING):
        return File(path=asked.data, max_rows=asked.num).preferences()
    if asked.data == HELDOUT:
        if run.evaluation is None:
            raise ValueError(
                f"the config has no `evaluation`, so there is no {HELDOUT} data; name a data file"
            )
        data: DataSpec = run.evaluation.data
    else:
        data = _source_data(run)
    found = data.preferences()
    return [found[i] for i in range(min(len(found), asked.num or len(found)))]


def beginning(run: Run, device: torch.device) -> tuple[Policy, Reference]:
    """The policy before training, and the reference of the run: by default, the former.

    Loaded apart from the aligned policy, since under full fine-tuning a copy of that one would be
    a reference that the run never had.
    """
    torch.manual_seed(rng.seed_of(run.seed, "initialisation"))
    policy = policy_of(run)
    policy.model.to(device)
    path = getattr(getattr(run.policy, "lora", None), "path", None)
    return policy, references.at_start(run.reference, policy, start=path).build(policy)


def beta_of(run: Run) -> float:
    """The run's beta where it is per nat of a sum, as DPO's is; the usual one otherwise."""
    objective: Any = run.objective
    sums = isinstance(objective, PairObjective) and objective.reduction == "sum"
    return float(objective.beta) if sums else DEFAULT_BETA


def _moved(layer: Mapping[str, Measured]) -> float:
    value = layer["sparsity/float32"].value
    assert value is not None, "a layer without parameters"
    return value


def _source_data(run: Run) -> DataSpec:
    data: DataSpec | None = getattr(run.source, "data", None)
    if data is None:
        raise ValueError(
            f"the source of this config is no single data set, so there is no {TRAINING} data; "
            "name a data file"
        )
    return data
