"""What FILE means on the command line: a config, a shipped config, or the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmalign import config, rng
from mmalign.locate import configs
from mmalign.policy import Policy
from mmalign.run import PolicySpec, Run

MODEL = "model"
RESOLVED = "config.yaml"


def config_file(name: str) -> Path:
    """The config that ``name`` means.

    Raises:
        ValueError: It is none of a file, a run's folder, or a shipped config's name.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / RESOLVED).is_file():
            raise ValueError(f"the folder {path} is no run: it holds no {RESOLVED}")
        return path / RESOLVED
    shipped = configs() / name
    for candidate in (path, shipped, shipped.with_name(f"{shipped.name}.yaml")):
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"there is no config {name} (looked in {Path.cwd()} and among the shipped ones, see "
        "`mmalign list configs`)"
    )


def load_run(name: str, overrides: Sequence[str]) -> Run:
    """The run that ``name`` means, with dotted overrides."""
    return config.load(config_file(name), overrides)


def load_policy(name: str, run: Run) -> Policy:
    """The aligned model where ``name`` is a run's folder, else the one that ``run`` starts from.

    Raises:
        ValueError: The run has not finished.
    """
    folder = Path(name)
    spec: Any = run.policy
    if folder.is_dir():
        if not (folder / MODEL).is_dir():
            raise ValueError(
                f"{folder} holds no {MODEL}: the run has not finished; continue it with "
                f"`mmalign train {folder} --resume`"
            )
        spec = aligned(run.policy, folder / MODEL)
    torch.manual_seed(rng.seed_of(run.seed, "initialisation"))
    policy: Policy = spec.load()
    return policy.on_accelerator()


def aligned(spec: PolicySpec, model: Path) -> PolicySpec:
    """The policy's settings, starting from what a run saved: its LoRA, or its whole model.

    Raises:
        ValueError: The settings have no field for that.
    """
    is_lora = (model / "adapter_config.json").is_file()
    needed = "lora" if is_lora else "model"
    assert is_dataclass(spec) and not isinstance(spec, type)
    if needed not in {f.name for f in fields(spec)}:
        raise ValueError(f"{type(spec).__name__} has no `{needed}`, so {model} cannot be loaded")
    current: Any = spec
    if is_lora:
        if current.lora is None:
            raise ValueError(f"{model} is a LoRA, and the config's policy has `lora: null`")
        return replace(current, lora=replace(current.lora, path=str(model)))
    return replace(current, model=str(model))
