import hashlib
from pathlib import Path

import pytest

from mmalign.assets import Asset, missing, verify


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path which fails when it is imported, with one file."""
    folder = tmp_path / "held_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "weights.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def asset(sha256: str, path: str = "weights.bin") -> Asset:
    return Asset(package="held_weights", requirement="held-weights==1", path=path, sha256=sha256)


def test_found_without_importing_the_package(package: Path) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    assert asset(right).locate() == package / "weights.bin"


def test_other_bytes_are_refused(package: Path) -> None:
    right = hashlib.sha256(b"weights").hexdigest()
    (package / "weights.bin").write_bytes(b"weightz")
    with pytest.raises(ValueError, match=f"{right} was expected"):
        asset(right).locate()


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        verify(tmp_path / "nothing", "0" * 64)


def test_absent_package_is_named_with_what_installs_it() -> None:
    absent = Asset(package="no_such_package_here", requirement="nsp==1", path="x", sha256="0" * 64)
    with pytest.raises(ValueError, match="pip install --no-deps nsp==1"):
        absent.locate()


def test_missing_names_requirements() -> None:
    assert missing({"torch": "torch>=2", "no_such_package_here": "nsp==1"}) == ["nsp==1"]
