"""What rewards and language models have said before, kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path

from torch import Tensor

from mmalign.fingerprints import code_versions
from mmalign.store import TensorStore

VALUE = "value"


def store_of(folder: str | None, what: str, asked: object) -> TensorStore | None:
    """Where the answers of ``asked`` are kept; None for nowhere.

    Args:
        folder: The root of the stores, or None.
        what: What is kept.
        asked: A reward or an asker; its settings are part of the store's address.

    Raises:
        ValueError: Its settings cannot be told, so that another one's answers might be found.
    """
    if folder is None:
        return None
    if not is_dataclass(asked):
        raise ValueError(
            f"cache={folder!r} needs a dataclass whose fields are its settings, and "
            f"{type(asked).__name__} is none; leave out the cache"
        )
    parts = {"kind": f"fifa {what}", "asked": repr(asked), "code": code_versions()}
    return TensorStore(Path(folder), parts)


def remembered(
    keys: Sequence[str],
    store: TensorStore | None,
    compute: Callable[[Sequence[int]], Tensor],
) -> list[Tensor]:
    """The value of each key: from the store, or computed and put there.

    Args:
        keys: Of the values.
        store: None to compute all.
        compute: From positions in ``keys`` to a tensor whose first axis they are.
    """
    found = {i: store.get(key) for i, key in enumerate(keys)} if store is not None else {}
    values = {i: entry[VALUE] for i, entry in found.items() if entry is not None}
    missing = [i for i in range(len(keys)) if i not in values]
    if missing:
        for i, value in zip(missing, compute(missing), strict=True):
            values[i] = value
            if store is not None:
                store.add(keys[i], {VALUE: value})
    return [values[i] for i in range(len(keys))]
