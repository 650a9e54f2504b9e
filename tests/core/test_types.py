"""Batches cut and joined: nothing lost, nothing mixed up, pieces that add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign.types import Batch, Trajectory


def trajectory(rows: int, steps: int, *, start: int = 0, separable: bool = True) -> Trajectory:
    """Row i belongs to prompt i // 2; token 100 i + t; static entries name their prompt."""
    prompts = [start + i for i in range((rows + 1) // 2)]
    lengths = torch.tensor([1 + i % steps for i in range(rows)])
    tokens = 100 * torch.arange(rows).unsqueeze(1) + torch.arange(steps) + 1000 * start
    return Trajectory(
        mask=torch.arange(steps) < lengths.unsqueeze(1),
        prompt_of=torch.arange(rows) // 2,
        static={"number": torch.tensor(prompts), "name": [f"p{i}" for i in prompts]},
        stepwise={"token": tokens, "latent": tokens.unsqueeze(-1).expand(-1, -1, 3).clone()},
        outputs=[f"{start}-{i}" for i in range(rows)],
        separable=separable,
    )


def batch(rows: int = 6, steps: int = 4, **settings: Any) -> Batch:
    made = trajectory(rows, steps, **settings)
    return Batch(
        trajectory=made,
        group=torch.arange(rows) // 2,
        reward=torch.arange(rows).float(),
        weight=made.mask.float(),
        reference=made.stepwise["token"].float(),
        pairs=torch.arange(rows).view(-1, 2),
        coefficient=torch.arange(rows // 2).float(),
        denominator=3.0,
    )


def test_rows_keep_their_prompt() -> None:
    """Prompts nobody refers to are dropped; order and repetition of rows are as asked."""
    cut = trajectory(6, 4).rows(torch.tensor([5, 2]))
    assert cut.num_prompts == 2 and len(cut) == 2
    assert cut.outputs == ["0-5", "0-2"]
    assert [cut.static["name"][i] for i in cut.prompt_of.tolist()] == ["p2", "p1"]
    assert cut.static["number"][cut.prompt_of].tolist() == [2, 1]
    assert cut.stepwise["token"][:, 0].tolist() == [500, 200]


def test_log_probs_of_sampling_follow_their_steps() -> None:
    """Through rows, windows and copies; joined, they are kept only where every part has them."""
    plain = trajectory(4, 3)
    drawn = replace(plain, log_probs=-plain.stepwise["token"].float())
    assert drawn.rows(torch.tensor([2, 0])).log_probs.tolist() == [[-200, -201, -202], [0, -1, -2]]
    assert drawn.steps(slice(1, 2)).log_probs[:, 0].tolist() == [-1, -101, -201, -301]
    assert torch.equal(drawn.to("cpu").log_probs, drawn.log_probs)
    short = drawn.steps(slice(0, 2))
    joined = Trajectory.concatenate([short, drawn]).log_probs
    assert joined.shape == (8, 3) and joined[1].tolist() == [-100, -101, 0]
    assert Trajectory.concatenate([drawn, plain]).log_probs is None
    assert plain.rows(torch.tensor([1])).log_probs is None


def test_pairs_follow_their_rows() -> None:
    """A pair stays where both sides do, with its coefficient."""
    cut = batch().rows(torch.tensor([5, 4, 0, 2, 3]))
    assert cut.pairs.tolist() == [[3, 4], [1, 0]]
    assert cut.coefficient.tolist() == [1.0, 2.0]
    assert cut.reward.tolist() == [5.0, 4.0, 0.0, 2.0, 3.0]
    assert cut.denominator == 3.0


def test_joined_batches_keep_apart() -> None:
    """Groups, pairs, prompts and row numbers are shifted; shorter rows get masked zeros."""
    first, second = batch(4, 2), batch(2, 5, start=7)
    second = replace(second, coefficient=None, counters={"x": 2.0}, metrics={"m": (1.0, 2.0)})
    first = replace(first, counters={"x": 1.0, "y": 1.0}, metrics={"m": (3.0, 4.0)})
    joined = Batch.concatenate([first, second])
    assert joined.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert joined.pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert joined.coefficient.tolist() == [0.0, 1.0, 1.0]
    names = [joined.trajectory.static["name"][i] for i in joined.trajectory.prompt_of.tolist()]
    assert names == ["p0", "p0", "p1", "p1", "p7", "p7"]
    assert joined.trajectory.mask.shape == (6, 5)
    assert not bool(joined.trajectory.mask[:4, 2:].any())
    assert float(joined.weight[:4, 2:].abs().sum()) == 0.0
    assert joined.counters == {"x": 3.0, "y": 1.0} and joined.metrics == {"m": (4.0, 6.0)}
    back = joined.rows(torch.tensor([4, 5]))
    assert torch.equal(back.trajectory.stepwise["token"], second.trajectory.stepwise["token"])


@pytest.mark.parametrize("rows", [None, 1, 2, 3, 4, 5, 6, 99])
@pytest.mark.parametrize("additive", ["group", "step"])
def test_pieces_hold_every_row_once(rows: int | None, additive: Any) -> None:
    """Groups stay whole where the objective needs them whole, even above the limit."""
    made = replace(batch(), group=torch.tensor([0, 1, 0, 1, 1, 2]), pairs=None, coefficient=None)
    pieces = list(made.microbatches(rows=rows, steps=None, additive_over=additive))
    outputs = [o for piece in pieces for o in piece.trajectory.outputs]
    assert sorted(outputs) == sorted(made.trajectory.outputs)
    for piece in pieces:
        if additive == "group":
            for number in set(piece.group.tolist()):
                assert int((piece.group == number).sum()) == int((made.group == number).sum())
            if len(set(piece.group.tolist())) > 1:
                assert len(piece) <= (rows or 6)
        else:
            assert len(piece) <= (rows or 6)


def test_windows_of_steps_hold_every_step_once() -> None:
    made = replace(batch(), pairs=None, coefficient=None)
    pieces = list(made.microbatches(rows=4, steps=3, additive_over="step"))
    assert [tuple(p.weight.shape) for p in pieces] == [(4, 3), (4, 1), (2, 3), (2, 1)]
    assert sum(float(p.weight.sum()) for p in pieces) == float(made.weight.sum())
    # Rows 0 to 5 have 1, 2, 3, 4, 1, 2 steps; the longest come first.
    assert pieces[1].trajectory.stepwise["latent"][:, 0, 0].tolist() == [303, 203, 103, 503]


def test_steps_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="compares whole trajectories"):
        list(batch().microbatches(rows=None, steps=2, additive_over="group"))
    with pytest.raises(ValueError, match="leave `steps_per_microbatch` unset for this model"):
        list(batch(separable=False).microbatches(rows=None, steps=2, additive_over="step"))
