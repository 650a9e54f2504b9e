"""Constructing preference data: what a builder makes, and how it gets to disk.

A builder is a small settings object; what it prepares walks through the rows of its data set and
makes candidates: pairs worth training on, and pairs that are not, with the reason. Both are
written, so that a person can look at either.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from mmalign.data.writing import preference_line
from mmalign.types import Preference

DROPPED = "dropped"
"""The column that says why a pair was left out, in the file of those."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A pair that a builder made.

    Attributes:
        preference: The pair, its provenance in its meta. Where it is dropped, an answer may be "".
        row: Number of the row of the builder's data that it was made from.
        dropped: Why it is not worth training on, in two or three words that are the same for the
            same reason; None where it is.
    """

    preference: Preference
    row: int
    dropped: str | None = None


@runtime_checkable
class Construction(Protocol):
    """A builder at work: models loaded, data opened."""

    def __len__(self) -> int:
        """Rows of its data."""
        ...

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """The candidates of the rows from ``start`` on, row by row in order.

        What a row gives depends on the seed and on its number, never on ``start`` or on its
        neighbours, so that an interrupted construction can go on. A row that gives no pair gives a
        dropped one, so that every row is accounted for.
        """
        ...


@runtime_checkable
class Builder(Protocol):
    """Settings of a way to construct preference data."""

    def prepare(self, *, seed: int) -> Construction:
        """Load the models, open the data, check that they fit.

        Raises:
            ValueError: They do not, or a setting is wrong.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a construction is written.

    Attributes:
        kept: The ``.jsonl`` file of pairs worth training on.
    """

    kept: Path

    @property
    def dropped(self) -> Path:
        """The file of the other pairs; its column ``dropped`` says why."""
        return self.kept.with_name(f"{self.kept.stem}.dropped.jsonl")

    @property
    def images(self) -> Path:
        """The folder of the pictures of both."""
        return self.kept.with_name(f"{self.kept.stem}-images")

    @property
    def progress(self) -> Path:
        """What an interrupted construction has done."""
        return self.kept.with_name(f".{self.kept.stem}.progress.json")

    def partial(self, file: Path) -> Path:
        """Where a file grows before it is complete."""
        return file.with_name(f".{file.name}.partial")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """How far a construction is: rows done, and how long both files were then."""

    settings: str
    rows: int = 0
    kept: int = 0
    dropped: int = 0

    def save(self, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        data = {name: getattr(self, name) for name in ("settings", "rows", "kept", "dropped")}
        partial.write_text(json.dumps(data), encoding="utf-8")
        partial.replace(path)

    @staticmethod
    def load(path: Path, settings: str) -> _Progress:
        """The saved progress of a construction with these settings, or none.

        Raises:
            ValueError: It was made with other settings.
        """
        if not path.is_file():
            return _Progress(settings=settings)
        found = _Progress(**json.loads(path.read_text(encoding="utf-8")))
        if found.settings != settings:
            raise ValueError(
                f"{path} belongs to a construction with other settings, which was not finished; "
                "remove it to start over, or restore the settings to go on"
            )
        return found


def construct(
    builder: Builder, path: str | Path, *, seed: int = 0, rows: int | None = None, settings: str
) -> Counter[str]:
    """Construct preference data and write it.

    Pairs worth training on go to ``path``, the others to ``NAME.dropped.jsonl`` beside it, the
    pictures of both into ``NAME-images``. The files appear when they are complete; a construction
    that was interrupted goes on after the last row that is done.

    Args:
        builder: How.
        path: A ``.jsonl`` file that does not exist yet.
        seed: Of every draw.
        rows: Only so many rows, from the first; None for all.
        settings: Tells constructions apart, so that none goes on with another's files.

    Returns:
        How many pairs were kept (under ``kept``), and how many dropped by reason.

    Raises:
        ValueError: The file exists, or the builder refuses its settings or data.
    """
    files = Files(kept=Path(path))
    if files.kept.suffix != ".jsonl":
        raise ValueError(f"{files.kept} must end in .jsonl")
    for file in (files.kept, files.dropped):
        if file.exists():
            raise ValueError(f"{file} exists already; choose another name or remove it")
    key = hashlib.sha256(f"{settings} seed {seed} rows {rows}".encode()).hexdigest()
    progress = _Progress.load(files.progress, key)
    construction = builder.prepare(seed=seed)
    total = len(construction) if rows is None else min(rows, len(construction))
    files.kept.parent.mkdir(parents=True, exist_ok=True)
    if progress.rows:
        _log.info("%s: going on after row %d of %d", path, progress.rows, total)
    _grow(construction, files, progress, total)
    return _finish(files)


def _grow(construction: Construction, files: Files, progress: _Progress, total: int) -> None:
    """Write the candidates of the rows that are not done, remembering every row that is."""
    kept, dropped = files.partial(files.kept), files.partial(files.dropped)
    with (
        kept.open("ab") as good,
        dropped.open("ab") as bad,
        tqdm(total=total, initial=progress.rows, desc="rows", unit="row") as bar,
    ):
        good.truncate(progress.kept)
        bad.truncate(progress.dropped)
        current = progress.rows
        for candidate in construction.candidates(progress.rows):
            if candidate.row != current:
                assert candidate.row > current, "candidates must come row by row"
                for file in (good, bad):
                    file.flush()
                    os.fsync(file.fileno())
                progress = replace(
                    progress, rows=candidate.row, kept=good.tell(), dropped=bad.tell()
                )
                progress.save(files.progress)
                bar.update(candidate.row - current)
                current = candidate.row
            if candidate.row >= total:
                break
            file = good if candidate.dropped is None else bad
            file.write(_line(candidate, files.images).encode() + b"\n")
        bar.update(total - current)


def _line(candidate: Candidate, images: Path) -> str:
    more = {} if candidate.dropped is None else {DROPPED: candidate.dropped}
    return preference_line(candidate.preference, images, row=candidate.row, more=more)


def _finish(files: Files) -> Counter[str]:
    counts: Counter[str] = Counter()
    with files.partial(files.kept).open("rb") as file:
        counts["kept"] = sum(1 for _ in file)
    with files.partial(files.dropped).open("rb") as file:
        counts.update(json.loads(line)[DROPPED] for line in file)
    for path in (files.dropped, files.kept):
        files.partial(path).replace(path)
    files.progress.unlink(missing_ok=True)
    return counts
