"""A batch on disk and back: every tensor, every nesting, no pickle."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.serialise import pack, restore_rng, rng_state, unpack
from mmalign.types import Batch, Trajectory


def batch() -> Batch:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    trajectory = Trajectory(
        mask=mask,
        prompt_of=torch.tensor([0, 1]),
        static={
            "ids": [torch.tensor([1, 2, 3]), torch.tensor([4])],
            "pixels": torch.rand(2, 3, 4, 4).bfloat16(),
            "nested": [{"grid": torch.tensor([[1, 2]]), "size": [4, 4]}, {"none": None}],
        },
        stepwise={"token": torch.tensor([[5, 6, 0], [7, 0, 0]])},
        outputs=["five six", Image.new("RGB", (2, 2))],
        separable=True,
    )
    return Batch(
        trajectory=trajectory,
        group=torch.tensor([0, 0]),
        reward=torch.tensor([1.0, float("nan")]),
        weight=mask.float(),
        reference=torch.rand(2, 3),
        advantage=torch.tensor([[1.0], [-1.0]]).expand(2, 3),
        pairs=torch.zeros(0, 2, dtype=torch.int64),
        denominator=1.5,
        counters={"dropped/ties": 2.0},
        metrics={"reward": (1.0, 2.0)},
    )


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    return first == second


def through_disk(made: Batch, folder: Path) -> Batch:
    tensors, description = pack(made)
    save_file(tensors, folder / "x.safetensors")
    return unpack(load_file(folder / "x.safetensors"), json.loads(json.dumps(description)))


def test_a_batch_comes_back(tmp_path: Path) -> None:
    """All fields, dtypes and the NaN of an unjudged row; pictures alone are left out."""
    made = batch()
    found = through_disk(made, tmp_path)
    assert list(found.trajectory.outputs) == ["five six", None]
    for part, other in ((made, found), (made.trajectory, found.trajectory)):
        for field in fields(part):
            if field.name not in ("trajectory", "outputs"):
                assert equal(getattr(part, field.name), getattr(other, field.name)), field.name


def test_what_comes_back_can_be_cut(tmp_path: Path) -> None:
    """The buffer of a resumed run goes on through the same pieces."""
    found = through_disk(batch(), tmp_path)
    piece = found.rows(torch.tensor([1]))
    assert piece.trajectory.static["ids"][0].tolist() == [4]
    assert piece.trajectory.steps(slice(0, 1)).mask.shape == (1, 1)


def test_names_of_one_memory(tmp_path: Path) -> None:
    """Fields that are one tensor, or views of one, are written apart."""
    made = batch()
    shared = torch.rand(2, 3)
    ids = torch.tensor([1, 2, 3])
    made = replace(
        made,
        reference=shared,
        behaviour=shared,
        values=shared[:, :],
        trajectory=replace(made.trajectory, static={"ids": [ids, ids[:2]]}),
    )
    found = through_disk(made, tmp_path)
    assert torch.equal(found.behaviour, shared) and torch.equal(found.values, shared)
    assert found.trajectory.static["ids"][1].tolist() == [1, 2]


def test_packing_takes_a_copy() -> None:
    made = batch()
    tensors, _ = pack(made)
    made.weight.fill_(9.0)
    assert float(tensors["weight"].max()) == 1.0


def test_what_cannot_be_kept_is_refused_by_name() -> None:
    made = batch()
    made = replace(made, trajectory=replace(made.trajectory, static={"thing": [object()]}))
    with pytest.raises(ValueError, match=r"trajectory.static.thing.0 holds a object"):
        pack(made)


def test_global_random_streams_continue(tmp_path: Path) -> None:
    torch.rand(3)
    random.gauss(0, 1)
    tensors, description = rng_state()
    save_file(tensors, tmp_path / "x.safetensors")
    expected = torch.rand(3), random.gauss(0, 1), random.random()
    restore_rng(load_file(tmp_path / "x.safetensors"), json.loads(json.dumps(description)))
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.gauss(0, 1), random.random()) == expected[1:]
