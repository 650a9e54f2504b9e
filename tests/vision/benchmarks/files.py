"""Small files in the published formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.benchmarks import Item, Report


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_json(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def values(report: Report, category: str | None = None) -> dict[str, float | None]:
    numbers = report.metrics if category is None else report.categories[category]
    return {name: found.value for name, found in numbers.items()}


def ids(items: Sequence[Item]) -> list[str]:
    return [item.id for item in items]
