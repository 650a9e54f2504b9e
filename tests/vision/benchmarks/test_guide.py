"""The settings that docs/guides/evaluation.md shows are valid, and each benchmark is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmalign import config, registry
from mmalign.benchmarks import Report

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "evaluation.md"
TEXT = GUIDE.read_text("utf-8")
FENCED = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
BLOCKS = [block for language, block in FENCED if language == "yaml"]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_settings(number: int, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.yaml"
    path.write_text(BLOCKS[number])
    found = config.load_benchmark(str(path))
    assert found.max_new_tokens > 0


def test_every_benchmark_is_in_the_guide() -> None:
    named = set(re.findall(r"^type: (\w+)$", "\n".join(BLOCKS), flags=re.MULTILINE))
    named |= set(re.findall(r"^\| `(tinyworld_\w+)`", TEXT, flags=re.MULTILINE))
    assert named == set(registry.BENCHMARKS)


def test_python() -> None:
    (code,) = [block for language, block in FENCED if language == "python"]
    space: dict[str, object] = {}
    exec(compile(code, str(GUIDE), "exec"), space)
    report = space["report"]
    assert isinstance(report, Report) and len(report.rows) > 60
