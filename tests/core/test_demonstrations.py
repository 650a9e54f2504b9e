"""Batches to imitate, and data sets put one after the other."""

from __future__ import annotations

import pytest
import torch

from mmalign.data.several import Several
from mmalign.demonstrations import Demonstrations
from mmalign.policy import Policy
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld

DATA = TinyWorld(task="arithmetic", size=5, seed=4)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return TextPolicy(model="tinyworld/text", max_new_tokens=40).load()


def test_every_row_is_right(policy: Policy) -> None:
    """Rows of reward 1, each a group of its own, every step of weight 1."""
    batch = next(iter(Demonstrations(data=DATA, batch_size=3, shuffle=False).build(policy, seed=0)))
    assert batch.trajectory.outputs == [output for _, output in DATA.demonstrations()[:3]]
    assert batch.group.tolist() == [0, 1, 2] and batch.reward.tolist() == [1.0] * 3
    assert torch.equal(batch.weight, batch.trajectory.mask.float())
    assert batch.pairs is None


def test_epochs_are_whole_and_shuffled(policy: Policy) -> None:
    """5 rows in batches of 2: 2, 2, 1; each epoch has every row once, in another order."""
    batches = iter(Demonstrations(data=DATA, batch_size=2).build(policy, seed=0))
    epochs = [[b.trajectory.outputs for b in (next(batches) for _ in range(3))] for _ in range(2)]
    assert [[len(b) for b in epoch] for epoch in epochs] == [[2, 2, 1]] * 2
    flat = [[o for b in epoch for o in b] for epoch in epochs]
    assert flat[0] != flat[1]
    expected = sorted(str(output) for _, output in DATA.demonstrations())
    assert sorted(flat[0]) == sorted(flat[1]) == expected


def test_it_goes_on_where_it_was(policy: Policy) -> None:
    source = Demonstrations(data=DATA, batch_size=2).build(policy, seed=0)
    batches = iter(source)
    next(batches)
    state = source.state_dict()
    wanted = [next(batches).trajectory.outputs for _ in range(3)]
    restored = Demonstrations(data=DATA, batch_size=2).build(policy, seed=0)
    restored.load_state_dict(state)
    found = iter(restored)
    assert [next(found).trajectory.outputs for _ in range(3)] == wanted
    with pytest.raises(ValueError, match="had 5 rows"):
        other = TinyWorld(task="arithmetic", size=6)
        Demonstrations(data=other).build(policy, seed=0).load_state_dict(state)


def test_without_rows(policy: Policy) -> None:
    with pytest.raises(ValueError, match="no demonstration"):
        Demonstrations(data=TinyWorld(task="arithmetic", size=0)).build(policy, seed=0)


def test_several_data_sets_are_one() -> None:
    """3 and 2 rows: numbers run on, from either end, and in slices."""
    parts = (TinyWorld(task="arithmetic", size=3), TinyWorld(task="arithmetic", size=2, seed=1))
    several = Several(parts=parts)
    found = several.demonstrations()
    expected = [row for part in parts for row in part.demonstrations()]
    assert len(found) == 5
    assert [found[i] for i in range(5)] == expected == list(found)
    assert found[-1] == expected[4] and found[1:4] == expected[1:4]
    assert [p.content for p in several.prompts()] == [
        p.content for part in parts for p in part.prompts()
    ]
    assert len(several.preferences()) == 5
    with pytest.raises(IndexError):
        found[5]
    with pytest.raises(ValueError, match="at least one"):
        Several(parts=())
