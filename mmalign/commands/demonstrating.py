"""``mmalign demo``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# By name, as the registry names classes: the core imports no modality.
TINY = "mmalign.tinyworld.demo"
REAL = "mmalign.tinyworld.real"


def demo(*, real: bool, only: Sequence[str], output: Path | None, seed: int) -> bool:
    """Run the demonstration; returns whether every score rose by more than its interval.

    Raises:
        ValueError: ``only`` with ``real``, or as the demonstration raises.
    """
    if real and only:
        raise ValueError("--real is one demonstration; --only chooses among the others")
    folder = output or Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    module: Any = import_module(REAL if real else TINY)
    rose = (
        module.main(output=folder, seed=seed)
        if real
        else module.main(output=folder, seed=seed, only=only)
    )
    return bool(rose)
