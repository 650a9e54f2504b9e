"""What is kept on disk is read back as it was, or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from core_parts import exit_code, forked
from torch import Tensor

from mmalign import store as module
from mmalign.store import ABOUT, PATTERN, TensorStore

PARTS = {"weights": "abc", "dtype": "float32"}


def entry(value: float) -> dict[str, Tensor]:
    return {"mean": torch.full((2, 3), value), "tokens": torch.arange(4) + int(value)}


def filled(root: Path, *shards: str) -> TensorStore:
    """A store with one shard for each text, and one entry for each of its letters."""
    store = TensorStore(root, PARTS)
    for letters in shards:
        for letter in letters:
            store.add(letter, entry(ord(letter)))
        store.flush()
    return store


def known(root: Path) -> str:
    """The letters a fresh reader finds; each is what was written."""
    store = TensorStore(root, PARTS)
    found = [letter for letter in "abcdef" if letter in store]
    for letter in found:
        for name, value in entry(ord(letter)).items():
            assert torch.equal(store[letter][name], value)
            assert store[letter][name].dtype == value.dtype
    return "".join(found)


def shard_of(store: TensorStore, letter: str) -> Path:
    path = store.shards[store.index.shards_of(letter)[0]]
    return path


def test_what_is_added_is_found_at_once_and_later(tmp_path: Path) -> None:
    """Half precision and integers included; nothing stays in memory once it is written."""
    store = TensorStore(tmp_path, PARTS)
    store.add("a", {"x": torch.tensor([1.5, -0.0]).bfloat16(), "n": torch.tensor(7)})
    assert "a" in store and len(store) == 1 and "b" not in store
    store.flush()
    assert not store.fresh
    for reader in (store, TensorStore(tmp_path, PARTS)):
        assert len(reader) == 1
        found = reader["a"]
        assert found.keys() == {"x", "n"} and found["x"].dtype == torch.bfloat16
        assert torch.equal(found["x"].view(torch.int16), torch.tensor([16320, -32768]).short())
        assert int(found["n"]) == 7
        with pytest.raises(KeyError):
            reader["b"]


def test_what_the_store_keeps_is_its_own(tmp_path: Path) -> None:
    """A caller that goes on writing into its tensor does not write into the store."""
    store = TensorStore(tmp_path, PARTS)
    value = torch.zeros(2)
    store.add("a", {"x": value})
    value.fill_(9)
    assert float(store["a"]["x"].sum()) == 0


def test_another_fingerprint_is_another_folder(tmp_path: Path) -> None:
    """And a file in each says in plain text which is which; it is not needed for reading."""
    store = filled(tmp_path, "ab")
    other = TensorStore(tmp_path, {**PARTS, "dtype": "bfloat16"})
    assert "a" not in other and other.folder != store.folder
    said = json.loads((other.folder / ABOUT).read_text())
    assert said == {
        "store version": str(module.STORE_VERSION),
        "weights": "abc",
        "dtype": "bfloat16",
    }
    (store.folder / ABOUT).unlink()
    assert known(tmp_path) == "ab"
    assert json.loads((store.folder / ABOUT).read_text())["dtype"] == "float32"


def test_another_version_of_the_code_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, "ab")
    monkeypatch.setattr(module, "STORE_VERSION", module.STORE_VERSION + 1)
    assert known(tmp_path) == ""


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def positions(path: Path) -> Iterator[int]:
    """Bytes of a shard's length field, of its header and of its values."""
    size = path.stat().st_size
    yield from (0, 3, 9, 20, size // 2, size - 24, size - 1)


def test_a_flipped_byte_is_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is: the shard's entries are missing, those of the others are not."""
    whole = shard_of(filled(tmp_path / "whole", "ab"), "a")
    assert whole.stat().st_size > 200
    for position in positions(whole):
        root = tmp_path / str(position)
        damaged = shard_of(filled(root, "ab", "cd"), "a")
        flip(damaged, position)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert known(root) == "cd"
        assert str(damaged) in caplog.text and "computed again" in caplog.text
        assert damaged.with_name(f"damaged-{damaged.name}").is_file()
        caplog.clear()
        assert known(root) == "cd" and not caplog.text


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_shard_is_never_read(tmp_path: Path, kept: int) -> None:
    store = filled(tmp_path, "ab", "cd")
    path = shard_of(store, "c")
    path.write_bytes(path.read_bytes()[:kept])
    assert known(tmp_path) == "ab"


def test_a_shard_that_goes_away_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody empties the folder while a process has the store open."""
    filled(tmp_path, "ab", "cd")
    store = TensorStore(tmp_path, PARTS)
    shard_of(store, "a").unlink()
    assert "a" not in store and "b" not in store and "c" in store
    assert "is gone" in caplog.text


def test_only_what_is_missing_is_written_again(tmp_path: Path) -> None:
    """The shard of the rebuilt entries is a new one; the good one is not touched."""
    store = filled(tmp_path, "ab", "cd")
    good, damaged = shard_of(store, "a"), shard_of(store, "c")
    before = good.stat().st_mtime_ns
    flip(damaged, -1)
    again = TensorStore(tmp_path, PARTS)
    for letter in "abcd":
        if letter not in again:
            again.add(letter, entry(ord(letter)))
    assert sorted(again.fresh) == ["c", "d"]
    again.flush()
    assert known(tmp_path) == "abcd"
    assert good.stat().st_mtime_ns == before


def test_killed_while_a_shard_is_written(tmp_path: Path) -> None:
    """At every file operation of a flush: the shard is there whole, or is not there."""
    from test_checkpoint import killed_at

    seen = []
    for operation in range(1, 20):
        root = tmp_path / str(operation)
        store = TensorStore(root, PARTS)
        store.add("a", entry(ord("a")))
        code = killed_at(operation, root, store.flush)
        seen.append(known(root))
        if code == 0:
            break
    assert code == 0 and operation > 3
    assert seen == sorted(seen) and set(seen) == {"", "a"}


def test_half_a_temporary_file_is_not_a_shard(tmp_path: Path) -> None:
    store = filled(tmp_path, "ab")
    whole = shard_of(store, "a")
    (store.folder / ".tmp-of-a-killed-process").write_bytes(whole.read_bytes()[:50])
    assert known(tmp_path) == "ab"


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes with their own entries and one that all of them compute."""
    TensorStore(tmp_path, PARTS)

    def write(letter: str) -> int:
        filled(tmp_path, f"f{letter}")
        return 0

    children = [forked(lambda letter=letter: write(letter)) for letter in "abcd"]
    assert [exit_code(child) for child in children] == [0, 0, 0, 0]
    assert known(tmp_path) == "abcdf"
    assert len(TensorStore(tmp_path, PARTS)) == 5
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


def test_an_entry_of_two_shards_outlives_one(tmp_path: Path) -> None:
    store = filled(tmp_path, "fa", "fb")
    shard_of(store, "a").write_bytes(b"")
    assert known(tmp_path) == "bf"


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    filled(tmp_path, *"abcdef")
    store = TensorStore(tmp_path, PARTS)
    for letter in "abcdefabcdef":
        assert torch.equal(store[letter]["mean"], entry(ord(letter))["mean"])
        assert len(store.opened) <= 2
    assert store.index.hashes.nbytes + store.index.shards.nbytes == 6 * 20


def test_entries_are_written_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their number, by their size, or because the last time is long ago."""
    store = TensorStore(tmp_path, PARTS)
    monkeypatch.setattr(module, "FLUSH_ENTRIES", 2)
    store.add("a", entry(1))
    assert store.fresh
    store.add("b", entry(1))
    assert not store.fresh
    store.add("c", {"mean": torch.zeros(2**10), "tokens": torch.zeros(1)})
    assert store.fresh_bytes == 4 * (2**10 + 1)
    store.flush()
    monkeypatch.setattr(module, "FLUSH_BYTES", 4096)
    store.add("d", {"mean": torch.zeros(2**10), "tokens": torch.zeros(1)})
    assert not store.fresh
    monkeypatch.setattr(module, "FLUSH_SECONDS", -1.0)
    store.add("e", entry(1))
    assert not store.fresh and len(list(store.folder.glob(PATTERN))) == 4
