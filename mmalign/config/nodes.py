"""YAML as a tree that remembers where everything stands, and dotted overrides of it.

Scalars follow the YAML 1.2 core schema: ``no`` and ``on`` are words, ``1e-4`` is a number. Nothing
is constructed but plain data; duplicate keys and documents that unfold into too much are refused.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
MAX_DEPTH = 60

_TAG = "tag:yaml.org,2002:"
_CORE: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
_FLOAT = re.compile(rf"^(?:{_CORE[3][1]})$")


class ConfigError(ValueError):
    """A config that cannot be used; the message says where and what to do."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves scalars by the core schema; used for composing only."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own protocol)


for _name, _pattern, _first in _CORE:
    _Loader.add_implicit_resolver(
        _TAG + _name,
        re.compile(rf"^(?:{_pattern})$"),
        [*_first, *([""] if _name == "null" else [])],
    )


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a string which either version of YAML would read as something else."""


_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))


@dataclass(slots=True)
class Node:
    """A piece of a config.

    Attributes:
        value: A scalar, a list of nodes, or a dict of nodes by key.
        where: ``file:line`` of its key (of itself in a list), or the override it comes from.
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The piece without its places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def parse(text: str, *, name: str, where: str | None = None) -> Node:
    """A YAML document as a tree.

    Args:
        text: The document.
        name: What messages call it; lines are counted within it.
        where: The place given to every node instead of ``name:line``.

    Raises:
        ConfigError: Not YAML, not plain data, a key twice, or far too large.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where or name}: more than {MAX_CHARACTERS} characters is no config")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and not where else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{where or name}{line}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where or name}: not valid YAML: {error}") from error
    if node is None:
        return Node(None, where or f"{name}:1")
    return _Unfolding(name, where).unfold(node, None, 0)


def of_data(value: Any, where: str) -> Node:
    """Plain data as a tree whose every node stands at ``where``."""
    if isinstance(value, Mapping):
        return Node({str(key): of_data(child, where) for key, child in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([of_data(child, where) for child in value], where)
    return Node(value, where)


def dump(data: Mapping[str, Any]) -> str:
    """Plain data as YAML that `parse` reads back equal."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def override(root: Node, assignment: str) -> None:
    """Apply ``a.b.c=value`` in place; ``value`` is YAML, and lists are entered by number.

    Whether the key exists is decided later, by what the tree is built into.

    Raises:
        ConfigError: Not of that form, or the path runs into a scalar or beyond a list.
    """
    path, equals, text = assignment.partition("=")
    where = f"override {assignment!r}"
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{where}: write key.key=value, for instance training.steps=100")
    node = root
    for depth, key in enumerate(keys):
        if node.value is None:
            node.value = {}
        inside = ".".join(keys[:depth]) or "the config"
        last = depth == len(keys) - 1
        if isinstance(node.value, list):
            node = _item(node, key, inside=inside, where=where)
        elif isinstance(node.value, dict):
            node = node.value.setdefault(key, Node(None, where))
        else:
            raise ConfigError(f"{where}: {inside} is {node.value!r} and has no key {key!r}")
        if last:
            node.value, node.where = parse(text, name=where, where=where).value, where


def _item(node: Node, key: str, *, inside: str, where: str) -> Node:
    if not key.isdecimal() or int(key) >= len(node.value):
        raise ConfigError(
            f"{where}: {inside} is a list of {len(node.value)}; name an item by its number from 0"
        )
    found: Node = node.value[int(key)]
    return found


class _Unfolding:
    """Turns composed nodes into ours, aliases unfolded, within limits."""

    def __init__(self, name: str, where: str | None) -> None:
        self.name, self.where, self.count = name, where, 0

    def unfold(self, node: yaml.Node, place: str | None, depth: int) -> Node:
        self.count += 1
        place = place or self._place(node)
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                f"{place}: the document unfolds into more than {MAX_NODES} nodes or {MAX_DEPTH} "
                "levels; use fewer aliases"
            )
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.unfold(child, None, depth + 1) for child in node.value], place)
        return Node(_scalar(node, place), place)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[Hashable, Node]:
        found: dict[Hashable, Node] = {}
        for key_node, child in node.value:
            place = self._place(key_node)
            key = key_node.value
            if not isinstance(key, str):
                raise ConfigError(f"{place}: a key must be a word")
            if key in found:
                raise ConfigError(
                    f"{place}: the key {key!r} stands here twice (first at {found[key].where})"
                )
            found[key] = self.unfold(child, place, depth + 1)
        return found

    def _place(self, node: yaml.Node) -> str:
        return self.where or f"{self.name}:{node.start_mark.line + 1}"


def _scalar(node: yaml.Node, place: str) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise ConfigError(f"{place}: the tag {node.tag!r} is not allowed; only plain values are")
