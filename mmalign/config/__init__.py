"""Configs: YAML whose tree is the tree of constructor arguments of `mmalign.run.Run`.

    policy: {type: text, model: tinyworld/text, lora: {rank: 8}}
    objective: {type: dpo, beta: 0.1}
    source: {type: preferences, data: {type: file, path: pairs.jsonl}, batch_size: 32}
    training: {steps: 200, learning_rate: 1e-5}

A node annotated with a Protocol names its class by ``type``: a name of `mmalign.registry`, or
``package.module:Class``. Only the classes that are named are imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.benchmarks import Benchmark
from mmalign.config import build, nodes
from mmalign.config.nodes import ConfigError
from mmalign.config.schema import json_schema
from mmalign.data.building import Builder
from mmalign.run import Run

__all__ = [
    "ConfigError", "described", "fingerprint", "from_data", "json_schema", "load", "load_benchmark",
    "load_builder", "loads",
    "resolved", "save_resolved", "settings_of",
]  # fmt: skip


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The run that a file describes.

    Args:
        path: A YAML file.
        overrides: ``a.b.c=value`` each, applied in order; a value is YAML.

    Raises:
        ConfigError: The file is missing or wrong; the message names file, line, key and, for an
            unknown key or type, the nearest known one.
    """
    return _overridden(_parsed(Path(path)), overrides)


def loads(text: str, overrides: Sequence[str] = (), *, name: str = "config") -> Run:
    """The run that YAML text describes; ``name`` is what messages call it."""
    return _overridden(nodes.parse(text, name=name), overrides)


def load_builder(name: str, path: Path | None, overrides: Sequence[str] = ()) -> Builder:
    """The builder ``name`` of `mmalign.registry`, or at a dotted path, with its settings.

    Args:
        name: Of the builder.
        path: A YAML file of its settings; None for its defaults.
        overrides: ``a.b.c=value`` each, applied in order; a value is YAML.

    Raises:
        ConfigError: As `load`; a file may name its builder by ``type``, but no other one.
    """
    root = nodes.of_data({}, "the defaults") if path is None else _parsed(path)
    for assignment in overrides:
        nodes.override(root, assignment)
    given = root.plain()
    named = given.get("type", name) if isinstance(given, Mapping) else name
    if named != name:
        raise ConfigError(f"{root.value['type'].where}: these are settings of {named}, not {name}")
    if isinstance(root.value, dict):
        root.value["type"] = nodes.of_data(name, root.where)
    found = build.build(Builder, root, "")
    assert isinstance(found, Builder)
    return found


def load_benchmark(name: str, overrides: Sequence[str] = ()) -> Benchmark:
    """The benchmark ``name`` of `mmalign.registry`, at a dotted path, or as a YAML file says.

    Args:
        name: Of the benchmark, or of a file that ends in ``.yaml`` or ``.yml`` and names its
            benchmark by ``type``.
        overrides: ``a.b.c=value`` each, applied in order; a value is YAML.

    Raises:
        ConfigError: As `load`.
    """
    is_file = name.endswith((".yaml", ".yml"))
    root = _parsed(Path(name)) if is_file else nodes.of_data({"type": name}, "the benchmark")
    for assignment in overrides:
        nodes.override(root, assignment)
    found = build.build(Benchmark, root, "")
    assert isinstance(found, Benchmark)
    return found


def settings_of(builder: Builder) -> dict[str, Any]:
    """The settings of a builder as plain data, every default filled in."""
    found: dict[str, Any] = build.describe(Builder, builder)
    return found


def described(benchmark: Benchmark) -> dict[str, Any]:
    """The settings of a benchmark as plain data, every default filled in, its type among them."""
    found: dict[str, Any] = build.describe(Benchmark, benchmark)
    return found


def from_data(data: Mapping[str, Any]) -> Run:
    """The run that plain data describes, such as what `resolved` returns."""
    return _run(nodes.of_data(data, "config"))


def resolved(run: Run) -> dict[str, Any]:
    """The run as plain JSON-like data with every default, from which an equal run is made.

    Fields with ``repr=False`` are secrets and left out.
    """
    found: dict[str, Any] = build.describe(Run, run)
    return found


def save_resolved(run: Run, path: str | Path) -> None:
    """Write `resolved` as YAML; `load` reads an equal run."""
    Path(path).write_text(nodes.dump(resolved(run)), encoding="utf-8")


def fingerprint(run: Run) -> str:
    """SHA-256 of everything that defines the run, which ``output`` does not."""
    data = {key: value for key, value in resolved(run).items() if key != "output"}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _parsed(path: Path) -> nodes.Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config {path}: {error}") from error
    return nodes.parse(text, name=str(path))


def _overridden(root: nodes.Node, overrides: Sequence[str]) -> Run:
    for assignment in overrides:
        nodes.override(root, assignment)
    return _run(root)


def _run(root: nodes.Node) -> Run:
    run = build.build(Run, root, "")
    assert isinstance(run, Run)
    return run
