"""Tiny random pipelines on disk, one of each kind."""

from __future__ import annotations

import pytest

from mmalign.types import Prompt
from tests.diffusion import tiny

PROMPTS = (Prompt(content="a red circle"), Prompt(content="two large blue squares"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the pipelines by kind."""
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "epsilon": tiny.save(tiny.diffusion(), root / "epsilon"),
        "v_prediction": tiny.save(tiny.diffusion(prediction_type="v_prediction"), root / "v"),
        "one": tiny.save(tiny.diffusion(alpha_to_one=True), root / "one"),
        "flow": tiny.save(tiny.flow(), root / "flow"),
        "shifted": tiny.save(tiny.flow(shift=3.0), root / "shifted"),
    }


@pytest.fixture
def prompts() -> list[Prompt]:
    """Two prompts of different length."""
    return list(PROMPTS)
