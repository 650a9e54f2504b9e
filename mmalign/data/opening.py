"""From a path, or a pattern of paths, to rows: which kind of file holds them."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mmalign.data.folders import METADATA, Folders, MetadataFolder
from mmalign.data.shards import Chain, TarShard
from mmalign.data.tables import JsonLines, JsonList, Parquet, Table

TABLES: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": JsonLines,
    ".json": JsonList,
    ".parquet": Parquet,
    ".tar": TarShard,
}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_table(path: Path) -> Table:
    """The rows of a file by its ending, of a folder, or of all files that a pattern names.

    Args:
        path: ``*``, ``?`` and ``[...]`` stand for characters, ``{a,b}`` and ``{000..012}`` for each
            of these; the rows of several files follow each other in the order of the names.

    Raises:
        ValueError: No such file, another ending, or a file as a whole is unreadable.
    """
    if path.exists():
        return _one(path)
    if not set("*?[{") & set(str(path)):
        raise ValueError(f"there is no data file {path} (looked in {Path.cwd()})")
    found: list[str] = []
    for pattern in braces(str(path)):
        names = sorted(glob.glob(pattern, recursive=True))
        if not names:
            raise ValueError(f"there is no data file {pattern} (looked in {Path.cwd()})")
        found += [name for name in names if name not in found]
    return Chain([_one(Path(name)) for name in found])


def _one(path: Path) -> Table:
    if path.is_dir():
        return MetadataFolder(path) if (path / METADATA).is_file() else Folders(path)
    if path.suffix not in TABLES:
        raise ValueError(
            f"{path}: data files end in {', '.join(TABLES)}, or are folders; a compressed tar file "
            "has to be unpacked to .tar"
        )
    return TABLES[path.suffix](path)


def braces(pattern: str) -> Iterator[str]:
    """The patterns that one with braces stands for, in order.

    ``a{0,1}b`` gives ``a0b`` and ``a1b``; ``{08..10}`` gives ``08``, ``09`` and ``10``.

    Raises:
        ValueError: A range falls.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    before, after = pattern[: match.start()], pattern[match.end() :]
    choices = match[1].split(",")
    numbers = _RANGE.fullmatch(match[1])
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise ValueError(f"{match[0]} in {pattern} counts down; write the smaller number first")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(first, last + 1)]
    for choice in choices:
        yield from braces(f"{before}{choice}{after}")
