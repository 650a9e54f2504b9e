"""Where a model is: shipped with the package, in a local folder, or under a hub's name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PREFIX = "tinyworld/"


def locate(name: str) -> str:
    """The folder of a shipped model, or ``name`` itself for transformers and diffusers to resolve.

    Args:
        name: ``"tinyworld/text"`` and its kin, a local folder, or a hub name.

    Raises:
        ValueError: A shipped model of that name does not exist.
    """
    if not name.startswith(PREFIX):
        return name
    root = Path(str(files("mmalign.tinyworld") / "weights"))
    folder = root / name.removeprefix(PREFIX)
    if not folder.is_dir():
        shipped = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        raise ValueError(f"no shipped model {name!r}; shipped are {[PREFIX + s for s in shipped]}")
    return str(folder)


def configs() -> Path:
    """The folder of the shipped configs: inside an installed package, beside it in a checkout."""
    package = Path(str(files("mmalign")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
