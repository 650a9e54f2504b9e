"""A checkpoint is all or nothing, whatever happens to the process or to the files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import exit_code, forked

from mmalign import checkpoint
from mmalign.checkpoint import MANIFEST, Checkpoint, Writer, latest, verify

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def content(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 5), float(step)), "scalar": torch.tensor(step)}


def write(root: Path, step: int, *, keep: int = 2) -> Checkpoint:
    writer = Writer(root, step)
    writer.open()
    writer.tensors("policy", content(step))
    writer.tensors("optimizer", content(step))
    writer.json("progress", {"step": step})
    return writer.commit(keep=keep)


def steps(root: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in root.glob("step-*"))


def holds(found: Checkpoint | None, step: int) -> bool:
    return (
        found is not None
        and found.step == step
        and found.json("progress") == {"step": step}
        and all(torch.equal(found.tensors("policy")[k], v) for k, v in content(step).items())
    )


def killed_at(operation: int, root: Path, body: Callable[[], Any]) -> int:
    """Run ``body`` in a fork that kills itself before its n-th file operation below ``root``.

    Operations are what Python announces to audit hooks, every fsync, and the writing of tensors,
    which is cut in the middle of the file.
    """
    count = [0]

    def tick() -> bool:
        count[0] += 1
        return count[0] == operation

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(root)) and tick():
            die()

    def child() -> int:
        save_file, fsync = checkpoint.save_file, os.fsync

        def torn(tensors: Any, path: Path) -> None:
            save_file(tensors, path)
            if tick():
                os.truncate(path, path.stat().st_size // 2)
                die()

        def synced(descriptor: int) -> None:
            if tick():
                die()
            fsync(descriptor)

        checkpoint.save_file, os.fsync = torn, synced
        sys.addaudithook(hook)
        body()
        return 0

    return exit_code(forked(child))


def test_killed_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    """Old before the rename, new after it, never neither; and the next save is as if nothing was.

    Two checkpoints are there and two are kept, so the save also removes one.
    """
    seen = []
    for operation in range(1, 200):
        root = tmp_path / str(operation)
        for step in (1, 2):
            write(root, step)
        code = killed_at(operation, root, lambda root=root: write(root, 3))
        found = latest(root)
        assert found is not None
        seen.append(found.step)
        assert holds(found, found.step)
        assert holds(write(root, 3), 3)
        assert holds(latest(root), 3)
        assert steps(root) == [2, 3]
        assert sorted(p.name for p in root.iterdir()) == ["step-00000002", "step-00000003"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
        shutil.rmtree(root)
    assert code == 0
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}
    assert seen.count(2) >= 15 and seen.count(3) >= 5


def test_killed_while_replacing_a_damaged_one(tmp_path: Path) -> None:
    """A run that fell back from 3 to 2 comes to 3 again: 2 stays usable at every moment."""
    for operation in range(1, 200):
        root = tmp_path / str(operation)
        for step in (2, 3):
            write(root, step)
        (root / "step-00000003" / "policy.safetensors").write_bytes(b"")
        code = killed_at(operation, root, lambda root=root: write(root, 3))
        found = latest(root)
        assert holds(found, 2) or holds(found, 3)
        if code == 0:
            break
    assert holds(latest(root), 3)


def test_a_good_checkpoint_of_the_same_step_stays(tmp_path: Path) -> None:
    """Writing it again replaces nothing, so there is no moment without it."""
    write(tmp_path, 3)
    before = (tmp_path / "step-00000003" / "policy.safetensors").stat().st_ino
    assert holds(write(tmp_path, 3), 3)
    assert (tmp_path / "step-00000003" / "policy.safetensors").stat().st_ino == before


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped byte inside tensor data": (
        lambda f: flip(f / "policy.safetensors", -3), "policy.safetensors was changed"
    ),
    "a flipped byte of JSON": (lambda f: flip(f / "progress.json", 3), "progress.json was changed"),
    "a truncated file": (
        lambda f: truncate(f / "optimizer.safetensors"), "optimizer.safetensors was changed"
    ),
    "a missing file": (lambda f: (f / "progress.json").unlink(), "progress.json is missing"),
    "swapped files": (
        lambda f: shutil.copy(f.parent / "step-00000001" / "policy.safetensors", f),
        "policy.safetensors was changed",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "has no manifest.json"),
    "a torn manifest": (lambda f: truncate(f / MANIFEST), "manifest.json cannot be read"),
    "a manifest that is a list": (lambda f: (f / MANIFEST).write_text("[1]"), "cannot be read"),
    "another step's manifest": (lambda f: edit_manifest(f, step=1), "belongs to step 1"),
    "a newer format": (lambda f: edit_manifest(f, format=2), "has format 2; this version .* 1"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_falls_back(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one before is used and a warning names the file; with none left it is an error."""
    hurt, message = DAMAGES[damage]
    for step in (1, 2):
        write(tmp_path, step)
    hurt(tmp_path / "step-00000002")
    with caplog.at_level(logging.WARNING):
        assert holds(latest(tmp_path), 1)
    assert len(caplog.records) == 1
    assert str(tmp_path / "step-00000002") in caplog.text
    shutil.rmtree(tmp_path / "step-00000001")
    with pytest.raises(ValueError, match=f"no checkpoint can be used: .*{message}"):
        latest(tmp_path)


def test_no_byte_of_a_manifest_is_trusted(tmp_path: Path) -> None:
    """Whatever byte is flipped, the answer is a plain word and never an exception.

    Where the manifest still verifies, the flip has changed nothing that is read.
    """
    write(tmp_path, 1)
    path = tmp_path / "step-00000001" / MANIFEST
    good = path.read_bytes()
    expected = json.loads(good)
    for position in range(len(good)):
        flip(path, position)
        problem = verify(path.parent)
        assert problem is None or str(tmp_path) in problem
        if problem is None:
            now = json.loads(path.read_text())
            assert {k: now.get(k) for k in ("format", "step", "files")} == expected
        path.write_bytes(good)


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        write(tmp_path, step, keep=2)
    assert steps(tmp_path) == [3, 10]


def test_pruning_never_counts_a_later_damaged_one(tmp_path: Path) -> None:
    """After a fall-back from 8 to 4 the save of 5 leaves 4 and 5, which are what can be used."""
    for step in (4, 8):
        write(tmp_path, step)
    flip(tmp_path / "step-00000008" / "policy.safetensors", -1)
    write(tmp_path, 5, keep=2)
    shutil.rmtree(tmp_path / "step-00000005")
    assert holds(latest(tmp_path), 4)


def test_nothing_there(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing write is an error of the save; the checkpoint before stays, and saving goes on."""
    write(tmp_path, 1)
    whole = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    assert holds(latest(tmp_path), 1)
    monkeypatch.setattr(checkpoint, "save_file", whole)
    assert holds(write(tmp_path, 2), 2)


def test_a_run_leaves_no_pickle(model: str, tmp_path: Path) -> None:
    """Every file of a run with a critic, stopped inside a buffer, is safetensors or text."""
    import core_parts

    from mmalign.trainer import Interrupted

    run = core_parts.training(core_parts.ppo(model, tmp_path / "run"), updates_per_batch=3)
    trainer = run.build()
    core_parts.stop_after(trainer, 2)
    with pytest.raises(Interrupted):
        trainer.train()
    files = [p for p in (tmp_path / "run" / "checkpoints").rglob("*") if p.is_file()]
    names = {p.name for p in files}
    assert {"policy.safetensors", "optimizer.safetensors", "buffer-0.safetensors"} <= names
    for path in files:
        assert path.suffix in (".safetensors", ".json")
        head = path.read_bytes()
        if path.suffix == ".json":
            json.loads(head)
        else:
            # A safetensors file starts with the length of its JSON header.
            length = int.from_bytes(head[:8], "little")
            assert isinstance(json.loads(head[8 : 8 + length]), dict)
