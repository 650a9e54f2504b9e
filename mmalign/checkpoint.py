"""Checkpoints that are all or nothing.

A checkpoint is written into a temporary folder, every file synced; a manifest with the size and
SHA-256 of each file is written last; the folder is renamed; only then are older ones pruned.
Loading verifies the manifest and falls back, loudly, to the checkpoint before. Tensors are
safetensors, the rest is JSON: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint on disk.

    Attributes:
        folder: Where it is.
        step: Optimizer updates made.
    """

    folder: Path
    step: int

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of part ``name``."""
        return load_file(self.folder / f"{name}.safetensors")

    def json(self, name: str) -> Any:
        """The JSON of part ``name``."""
        return json.loads((self.folder / f"{name}.json").read_text())

    def has(self, name: str) -> bool:
        """Whether there is a part ``name``."""
        return any((self.folder / f"{name}{end}").is_file() for end in (".json", ".safetensors"))


class Writer:
    """Collects the files of one checkpoint; `commit` makes them visible at once."""

    def __init__(self, root: Path, step: int) -> None:
        self.root = root
        self.step = step
        self.final = root / folder_name(step)
        self.folder = root / f".tmp-{folder_name(step)}"

    def open(self) -> None:
        """Start with an empty temporary folder (left over from a crash, perhaps)."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def tensors(self, name: str, values: Mapping[str, Tensor]) -> None:
        """Write tensors as part ``name``."""
        contiguous = {k: v.detach().cpu().contiguous() for k, v in values.items()}
        path = self.folder / f"{name}.safetensors"
        save_file(contiguous, path)
        sync(path)

    def json(self, name: str, value: Any) -> None:
        """Write JSON as part ``name``."""
        write_text(self.folder / f"{name}.json", json.dumps(value))

    def commit(self, *, keep: int) -> Checkpoint:
        """Write the manifest, rename, and prune all but the newest ``keep``.

        Where this step is there already and verifies, that one stays: replacing it would leave a
        moment without either. Damaged ones of later steps, left by a run that fell back, do not
        count among those kept.
        """
        assert keep >= 1
        files = {
            p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)}
            for p in sorted(self.folder.iterdir())
        }
        manifest = {"format": FORMAT, "step": self.step, "files": files}
        write_text(self.folder / MANIFEST, json.dumps(manifest, indent=1))
        sync(self.folder)
        if self.final.exists() and verify(self.final) is None:
            shutil.rmtree(self.folder)
        else:
            shutil.rmtree(self.final, ignore_errors=True)
            self.folder.rename(self.final)
        sync(self.root)
        for old in [p for p in _folders(self.root) if p.name <= self.final.name][:-keep]:
            shutil.rmtree(old)
        return Checkpoint(folder=self.final, step=self.step)


def latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None where there is none at all.

    Raises:
        ValueError: There are checkpoints, and every one of them is damaged.
    """
    folders = _folders(root)
    problems = []
    for folder in reversed(folders):
        problem = verify(folder)
        if problem is None:
            return Checkpoint(folder=folder, step=int(folder.name.removeprefix("step-")))
        problems.append(problem)
        logger.warning("checkpoint not used: %s", problem)
    if problems:
        raise ValueError("no checkpoint can be used: " + "; ".join(problems))
    return None


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{folder} has no {MANIFEST}"
    try:
        manifest = json.loads(path.read_text())
        version, step = manifest["format"], manifest["step"]
        files = {name: (f["bytes"], f["sha256"]) for name, f in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} cannot be read ({type(error).__name__}: {error})"
    if version != FORMAT:
        return f"{folder} has format {version}; this version of mmalign reads format {FORMAT}"
    if folder.name != folder_name(step):
        return f"{path} belongs to step {step}"
    for name, (size, digest) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size or _sha256(file) != digest:
            return f"{file} was changed after it was written"
    return None


def folder_name(step: int) -> str:
    """The name of the checkpoint's folder after ``step`` updates."""
    return "step-" + str(step).zfill(8)


def write_text(path: Path, text: str) -> None:
    """Write and sync."""
    path.write_text(text)
    sync(path)


def replace_text(path: Path, text: str) -> None:
    """Replace a file at once: readers see the old text or the new."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    write_text(temporary, text)
    temporary.rename(path)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("step-*") if p.is_dir()) if root.is_dir() else []


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
