"""Fixtures of the core's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import core_parts


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random language model."""
    return core_parts.write_model(tmp_path_factory.mktemp("model"))
