"""The guide to pipelines: its table against the code."""

from __future__ import annotations

import re
from pathlib import Path

from mmalign.diffusion.families import FAMILIES

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "pipelines.md"


def test_the_table_names_every_family() -> None:
    """Once each, and no other."""
    named = re.findall(r"^\| `(\w+Pipeline)`", GUIDE.read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(named) == sorted(FAMILIES)
