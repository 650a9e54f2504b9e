"""From a tree of nodes to the tree of dataclasses it describes, and back.

A dataclass field is one of four things: a *kind* (annotated with a Protocol; its node names a class
by ``type``), another dataclass, a container of those, or a leaf, which pydantic validates.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mmalign import registry
from mmalign.benchmarks import Benchmark
from mmalign.config.nodes import ConfigError, Node
from mmalign.data.building import Builder
from mmalign.endpoint import Asker
from mmalign.experts import Expert
from mmalign.protocols import Diversity, Objective, RewardModel, Selector
from mmalign.run import DataSpec, PolicySpec, ReferenceSpec, SourceSpec

KINDS: Mapping[Any, str] = {
    PolicySpec: "policies",
    Objective: "objectives",
    SourceSpec: "sources",
    ReferenceSpec: "references",
    DataSpec: "data",
    RewardModel: "rewards",
    Diversity: "diversities",
    Selector: "selectors",
    Builder: "builders",
    Asker: "askers",
    Expert: "experts",
    Benchmark: "benchmarks",
}
"""Which table of names the node of a field annotated with this Protocol is looked up in."""


def build(annotation: Any, node: Node, path: str) -> Any:
    """The value that ``node`` describes.

    Args:
        annotation: What is expected: a Protocol of `KINDS`, a dataclass, a container, or a leaf.
        node: The piece of the config.
        path: Dotted name of the piece, for messages; empty for the whole.

    Raises:
        ConfigError: Unknown key or type, missing key, or a wrong value; with file and line.
    """
    if not structured(annotation):
        return _leaf(annotation, node, path)
    inner, optional = without_none(annotation)
    if node.value is None and optional:
        return None
    if inner in KINDS:
        return _kind(KINDS[inner], node, path)
    if is_dataclass(inner):
        assert isinstance(inner, type)
        return _dataclass(inner, _mapping(node, path), node, path)
    origin, arguments = get_origin(inner), get_args(inner)
    if issubclass(origin, Mapping):
        children = _mapping(node, path).items()
        return {key: build(arguments[1], child, _join(path, key)) for key, child in children}
    assert issubclass(origin, Sequence), f"{path}: a config cannot describe {annotation}"
    if not isinstance(node.value, list):
        raise ConfigError(f"{node.where}: {path} must be a list, not {node.plain()!r}")
    items = enumerate(node.value)
    return tuple(build(arguments[0], child, _join(path, str(i))) for i, child in items)


def describe(annotation: Any, value: Any) -> Any:
    """The plain data from which `build` makes an equal value.

    A field with ``repr=False`` holds a secret and is left out.
    """
    if not structured(annotation):
        return leaf_adapter(annotation).dump_python(value, mode="json")
    inner, _ = without_none(annotation)
    if value is None:
        return None
    if inner in KINDS:
        return {"type": name_of(KINDS[inner], type(value)), **_described_fields(value)}
    if is_dataclass(inner):
        return _described_fields(value)
    arguments = get_args(inner)
    if issubclass(get_origin(inner), Mapping):
        return {key: describe(arguments[1], child) for key, child in value.items()}
    return [describe(arguments[0], child) for child in value]


def structured(annotation: Any) -> bool:
    """Whether a kind or a dataclass is anywhere in ``annotation``; it is a leaf otherwise."""
    if annotation in KINDS or (isinstance(annotation, type) and is_dataclass(annotation)):
        return True
    return any(structured(a) for a in get_args(annotation))


def without_none(annotation: Any) -> tuple[Any, bool]:
    """``X | None`` as (X, True); anything else as (itself, False)."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    others = [a for a in get_args(annotation) if a is not type(None)]
    assert len(others) == 1, f"a config cannot choose between {others}"
    return others[0], True


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of the fields that the constructor of dataclass ``cls`` takes."""
    found = get_type_hints(cls, include_extras=True)
    return {f.name: found[f.name] for f in fields(cls) if f.init}


def required(field: Field[Any]) -> bool:
    """Whether the field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def class_of(kind: str, name: str, where: str, path: str) -> type:
    """The dataclass that ``type: name`` stands for.

    Raises:
        ConfigError: No such name, nothing importable there, or not a dataclass.
    """
    names = sorted(registry.table(kind))
    if ":" not in name and name not in names:
        raise ConfigError(
            f"{where}: {path}: no {kind} type {name!r}{_nearest(name, names)}; there are "
            f"{', '.join(names)}, or package.module:Class"
        )
    try:
        found = registry.resolve(kind, name)
    except ValueError as error:
        raise ConfigError(f"{where}: {path}: {error}") from error
    if not is_dataclass(found):
        raise ConfigError(f"{where}: {path}: {name} is not a dataclass, so a config cannot make it")
    return found


def name_of(kind: str, cls: type) -> str:
    """The registered name of ``cls``, or its dotted path."""
    for name, target in registry.table(kind).items():
        module, _, attribute = target.partition(":")
        if getattr(sys.modules.get(module), attribute, None) is cls:
            return name
    return f"{cls.__module__}:{cls.__qualname__}"


@cache
def leaf_adapter(annotation: Any) -> TypeAdapter[Any]:
    """The validator of a leaf."""
    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False))


def _kind(kind: str, node: Node, path: str) -> Any:
    given = dict(_mapping(node, path))
    names = ", ".join(sorted(registry.table(kind)))
    named = given.pop("type", None)
    if named is None:
        raise ConfigError(f"{node.where}: {path} lacks the key 'type' (one of {names})")
    if not isinstance(named.value, str):
        raise ConfigError(f"{named.where}: {path}.type must be a name (one of {names})")
    cls = class_of(kind, named.value, named.where, path)
    return _dataclass(cls, given, node, path, label=f" (type {named.value})", also=["type"])


def _dataclass(
    cls: type,
    given: Mapping[str, Node],
    node: Node,
    path: str,
    *,
    label: str = "",
    also: Sequence[str] = (),
) -> Any:
    annotations = hints(cls)
    place = f"{path or 'the config'}{label}"
    for key, child in given.items():
        if key not in annotations:
            allowed = [*also, *annotations]
            raise ConfigError(
                f"{child.where}: {place} has no key {key!r}{_nearest(key, allowed)}; "
                f"allowed are {', '.join(allowed)}"
            )
    missing = [f.name for f in fields(cls) if f.init and required(f) and f.name not in given]
    if missing:
        raise ConfigError(f"{node.where}: {place} lacks the key {missing[0]!r}")
    values = {k: build(annotations[k], child, _join(path, k)) for k, child in given.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{node.where}: {place}: {error}") from error


def _leaf(annotation: Any, node: Node, path: str) -> Any:
    value = node.plain()
    try:
        # Strict validation of JSON is the strictness meant here: 1 is a float, a list is a tuple,
        # and nothing else is anything but itself.
        return leaf_adapter(annotation).validate_json(json.dumps(value))
    except ValidationError as error:
        problems = list(dict.fromkeys(e["msg"] for e in error.errors()))
        hint = _nearest(value, _choices(annotation)) if isinstance(value, str) else ""
        said = f"{'; or '.join(problems)}, but it is {value!r}{hint}"
        raise ConfigError(f"{node.where}: {path}: {said}") from error


def _mapping(node: Node, path: str) -> Mapping[str, Node]:
    if not isinstance(node.value, dict):
        what = path or "the config"
        raise ConfigError(f"{node.where}: {what} must be a mapping, not {node.plain()!r}")
    return node.value


def _described_fields(value: Any) -> dict[str, Any]:
    annotations = hints(type(value))
    return {
        f.name: describe(annotations[f.name], getattr(value, f.name))
        for f in fields(value)
        if f.init and f.repr
    }


def _choices(annotation: Any) -> list[str]:
    parts = get_args(annotation)
    return [p for a in parts for p in ([a] if isinstance(a, str) else _choices(a))]


def _nearest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
