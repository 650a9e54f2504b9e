"""The JSON Schema of a config, for editors and other programs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin

from mmalign import registry
from mmalign.config.build import KINDS, class_of, hints, leaf_adapter, structured, without_none
from mmalign.config.build import required as has_no_default
from mmalign.config.nodes import ConfigError
from mmalign.run import Run

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of the whole tree: ``oneOf`` the registered types wherever a type is named.

    Imports every registered class, and so every modality. One that needs a package which is not
    installed is left out and named in a ``$comment``.

    Raises:
        ConfigError: A registered class cannot be imported for another reason.
    """
    definitions: dict[str, Any] = {}
    for kind in KINDS.values():
        choices, absent = [], []
        for name in sorted(registry.table(kind)):
            try:
                cls = class_of(kind, name, "registry", kind)
            except ConfigError as error:
                absent.append(f"{name} needs the package {_missing_package(error)}")
                continue
            definitions[f"{kind}.{name}"] = _object(cls, named=name)
            choices.append({"$ref": f"#/$defs/{kind}.{name}"})
        definitions[kind] = {"oneOf": [*choices, _dotted(kind)]}
        if absent:
            definitions[kind]["$comment"] = f"left out: {'; '.join(absent)}"
    return {"$schema": DIALECT, "title": "mmalign run", **_object(Run), "$defs": definitions}


def _missing_package(error: ConfigError) -> str:
    """The package whose absence caused ``error``; re-raises it where that is not the cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ModuleNotFoundError):
        cause = cause.__cause__
    package = "" if cause is None else (cause.name or "").partition(".")[0]
    if package in ("", "mmalign"):
        raise error
    return package


def _object(cls: type, *, named: str | None = None) -> dict[str, Any]:
    texts = attribute_texts(cls)
    properties: dict[str, Any] = {}
    needed = []
    if named is not None:
        properties["type"] = {"const": named}
        needed.append("type")
    annotations = hints(cls)
    for field in fields(cls):
        if not field.init:
            continue
        entry = _annotation(annotations[field.name])
        if field.name in texts:
            entry = {**entry, "description": texts[field.name]}
        if has_no_default(field):
            needed.append(field.name)
        elif isinstance(field.default, bool | int | float | str | None):
            entry = {**entry, "default": field.default}
        properties[field.name] = entry
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    return {
        "type": "object",
        "description": summary,
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def _annotation(annotation: Any) -> dict[str, Any]:
    if not structured(annotation):
        return leaf_adapter(annotation).json_schema()
    inner, optional = without_none(annotation)
    if optional:
        return {"anyOf": [_annotation(inner), {"type": "null"}]}
    if inner in KINDS:
        return {"$ref": f"#/$defs/{KINDS[inner]}"}
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is None:
        return _object(inner)
    if issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _annotation(arguments[1])}
    return {"type": "array", "items": _annotation(arguments[0])}


def _dotted(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"One of your own {kind}: package.module:Class.",
        "properties": {"type": {"type": "string", "pattern": ":"}},
        "required": ["type"],
    }


def attribute_texts(cls: type) -> dict[str, str]:
    """What the section ``Attributes:`` of a docstring says, by attribute."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = None
    for line in section.splitlines():
        start = re.fullmatch(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name is not None and line.startswith("        "):
            found[name] += " " + line.strip()
        elif line and not line.startswith("    "):
            break
    return found
