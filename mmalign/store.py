"""Frozen results on disk: append-only shards, each written whole and never believed unchecked.

A store is a folder named by the fingerprint of what computed its entries; `fingerprint.json` in it
says in plain text what that is. An entry is a few named tensors under a key. Entries are gathered
in memory and written as one safetensors file whose name carries the SHA-256 of its bytes: written
under a temporary name, synced, renamed. There is no manifest that could be missing or lag behind.

A shard is checked against its name before the first of its entries is read. One that does not
match (truncated, altered, half copied) is named in a warning, set aside, and its entries count as
missing: they, and only they, are computed again. Reading goes through memory maps, and the index
costs some 20 bytes an entry, so a store of millions of rows does not sit in memory.

Processes may write into one store at the same time: different contents have different names, and
each process reads what was there when it opened the store, and its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mmalign.checkpoint import replace_text, sync
from mmalign.fingerprints import fingerprint

STORE_VERSION = 2
"""Raised whenever kept results would no longer be what the code computes."""
ABOUT = "fingerprint.json"
PATTERN = "shard-*.safetensors"
FLUSH_ENTRIES = 4096
FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 300.0
OPEN_SHARDS = 24
logger = logging.getLogger(__name__)


class TensorStore:
    """Entries of named tensors by key.

    All entries of a store have the same tensor names; shapes may differ.

    Args:
        root: The folder that holds stores; this one's own folder in it is named by ``parts``.
        parts: Everything the entries depend on apart from their keys, by name, as text.

    Raises:
        ValueError: Its folder says that it holds the results of something else: it was renamed or
            copied over.
    """

    def __init__(self, root: Path, parts: Mapping[str, str]) -> None:
        about = {"store version": str(STORE_VERSION), **parts}
        self.folder = root / fingerprint(about)[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / ABOUT).is_file():
            _require_same(about, self.folder / ABOUT)
        else:
            replace_text(self.folder / ABOUT, json.dumps(about, indent=1, sort_keys=True) + "\n")
        self.fresh: dict[str, dict[str, Tensor]] = {}
        # What is left when the store or the process goes is written then.
        weakref.finalize(self, _write_rest, self.folder, self.fresh)
        self.fresh_bytes = 0
        self.flushed_at = time.monotonic()
        self.shards: list[Path] = []
        self.checked: set[int] = set()
        self.opened: OrderedDict[int, Any] = OrderedDict()
        self.index = _Index()
        for path in sorted(self.folder.glob(PATTERN)):
            self._register(path)

    def __contains__(self, key: str) -> bool:
        return key in self.fresh or self._shard_of(key) is not None

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry under ``key``, or None where there is none that can be believed."""
        if key in self.fresh:
            return self.fresh[key]
        shard = self._shard_of(key)
        if shard is None:
            return None
        file, names = self._open(shard)
        return {name: file.get_tensor(f"{key}/{name}") for name in names}

    def __len__(self) -> int:
        return len(self.index) + len(self.fresh)

    def add(self, key: str, entry: Mapping[str, Tensor]) -> None:
        """Remember an entry; flushed once enough are new, or some minutes after the last flush."""
        assert "/" not in key
        copied = {name: value.detach().cpu().contiguous().clone() for name, value in entry.items()}
        self.fresh[key] = copied
        self.fresh_bytes += sum(value.nbytes for value in copied.values())
        if (
            len(self.fresh) >= FLUSH_ENTRIES
            or self.fresh_bytes >= FLUSH_BYTES
            or time.monotonic() - self.flushed_at > FLUSH_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Write the new entries as one shard."""
        path = _write(self.folder, self.fresh)
        if path is not None:
            self._register(path)
        self.fresh.clear()
        self.fresh_bytes, self.flushed_at = 0, time.monotonic()

    def _shard_of(self, key: str) -> int | None:
        """The shard that holds ``key`` and is what its name says, or None."""
        for shard in self.index.shards_of(key):
            if shard in self.checked or self._check(shard):
                return shard
        return None

    def _check(self, shard: int) -> bool:
        path = self.shards[shard]
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            logger.warning("%s is gone; what it held is computed again", path)
            self.index.forget(shard)
            return False
        if path.name == f"shard-{digest}.safetensors":
            self.checked.add(shard)
            return True
        self._set_aside(path, "was changed after it was written")
        self.index.forget(shard)
        return False

    def _register(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                keys = list(dict.fromkeys(name.partition("/")[0] for name in file.keys()))  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            self._set_aside(path, f"cannot be read ({error})")
            return
        self.shards.append(path)
        self.index.add(keys, len(self.shards) - 1)

    def _set_aside(self, path: Path, problem: str) -> None:
        logger.warning(
            "%s %s: it is renamed to damaged-... and not used, and what it held is computed again",
            path,
            problem,
        )
        # Another process may do the same at this moment.
        with suppress(FileNotFoundError):
            path.rename(path.with_name(f"damaged-{path.name}"))

    def _open(self, shard: int) -> tuple[Any, list[str]]:
        """The shard's file and its tensor names; the shards used last stay open."""
        if shard not in self.opened:
            file = safe_open(self.shards[shard], "pt")
            names = list(dict.fromkeys(n.partition("/")[2] for n in file.keys()))  # noqa: SIM118
            self.opened[shard] = (file, names)
        self.opened.move_to_end(shard)
        if len(self.opened) > OPEN_SHARDS:
            self.opened.popitem(last=False)
        found: tuple[Any, list[str]] = self.opened[shard]
        return found


def _write(folder: Path, entries: Mapping[str, Mapping[str, Tensor]]) -> Path | None:
    """Write a shard; None where there is nothing to write."""
    tensors = {f"{key}/{name}": v for key, entry in entries.items() for name, v in entry.items()}
    if not tensors:
        return None
    content = save(tensors)
    path = folder / f"shard-{hashlib.sha256(content).hexdigest()}.safetensors"
    # Named by no process number: two machines that share the folder may have the same one.
    temporary = folder / f".tmp-{uuid.uuid4().hex}"
    temporary.write_bytes(content)
    sync(temporary)
    temporary.rename(path)
    sync(folder)
    return path


def _write_rest(folder: Path, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write what is left, unless somebody has removed the whole store meanwhile."""
    if folder.is_dir():
        _write(folder, entries)


class _Index:
    """Which shards hold a key: sorted 16-byte hashes, since a dict of text costs ten times that."""

    def __init__(self) -> None:
        self.hashes = np.empty(0, "S16")
        self.shards = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(np.unique(self.hashes))

    def add(self, keys: Sequence[str], shard: int) -> None:
        hashes = np.sort(np.array([_hash(key) for key in keys], "S16"))
        where = np.searchsorted(self.hashes, hashes)
        self.hashes = np.insert(self.hashes, where, hashes)
        self.shards = np.insert(self.shards, where, shard)

    def shards_of(self, key: str) -> list[int]:
        wanted = np.array(_hash(key), "S16")
        first = int(np.searchsorted(self.hashes, wanted, side="left"))
        last = int(np.searchsorted(self.hashes, wanted, side="right"))
        return [int(shard) for shard in self.shards[first:last]]

    def forget(self, shard: int) -> None:
        kept = self.shards != shard
        self.hashes, self.shards = self.hashes[kept], self.shards[kept]


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _require_same(about: Mapping[str, str], path: Path) -> None:
    """Refuse a folder whose note of what computed its entries is another one's."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if found != dict(about):
        told = found if isinstance(found, dict) else {}
        other = sorted(k for k in {*about, *told} if about.get(k) != told.get(k))
        raise ValueError(
            f"{path} says that this folder holds what something else computed (other: "
            f"{', '.join(other)}); folders of a cache must not be renamed or copied over each "
            "other: delete it, it costs only time"
        )
