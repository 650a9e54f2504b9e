"""Names of configs: every one leads to a class, outsiders included, and wrong ones say so."""

from __future__ import annotations

from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from mmalign import registry
from mmalign.config.build import KINDS
from mmalign.objectives import DPO
from mmalign.registry import TABLES, resolve, table

NAMES = [(kind, name) for kind, names in TABLES.items() if kind != "claims" for name in names]
"""Claims are objects, not settings: tests/test_structure.py looks at them."""


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_name_leads_to_settings_with_the_contract(kind: str, name: str) -> None:
    """A dataclass whose public methods include those of the Protocol that configs ask for."""
    found = resolve(kind, name)
    assert is_dataclass(found)
    protocol = next(p for p, table_ in KINDS.items() if table_ == kind)
    asked = [
        n
        for n in vars(protocol)
        if n == "__call__" or (n[0] != "_" and callable(vars(protocol)[n]))
    ]
    assert asked and all(callable(getattr(found, member, None)) for member in asked)


def test_a_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("objectives", "mmalign.objectives:DPO") is DPO is resolve("objectives", "dpo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpq", r"no objectives called 'dpq'; there are \['alphapo', '"),
        ("mmalign.nowhere:X", "cannot import mmalign.nowhere:X"),
        ("mmalign.objectives:Nope", "cannot import mmalign.objectives:Nope"),
        ("mmalign.objectives:", "cannot import mmalign.objectives:"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve("objectives", name)


def entry(name: str, value: str) -> Any:
    return SimpleNamespace(name=name, value=value, dist="somebodys-package")


def test_packages_add_names_but_take_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group mmalign.<kind>; one that takes our name is refused, not obeyed."""
    groups = {"mmalign.objectives": [entry("mine", "mmalign.objectives:DPO")]}
    monkeypatch.setattr(registry, "installed", lambda group: groups.get(group, []))
    assert resolve("objectives", "mine") is DPO
    assert "mine" not in table("rewards") and "mine" not in TABLES["objectives"]
    groups["mmalign.objectives"] = [entry("dpo", "evil:DPO")]
    with pytest.raises(ValueError, match="'dpo' of somebodys-package takes a name"):
        resolve("objectives", "dpo")


def test_installed_packages_are_read_once() -> None:
    """Every scan opens the metadata of each package; a config asks hundreds of times."""
    assert registry.installed("mmalign.objectives") is registry.installed("mmalign.objectives")
    assert {entry.group for entry in registry.installed("console_scripts")} == {"console_scripts"}
