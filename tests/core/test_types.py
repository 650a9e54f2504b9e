"""The values that flow: rows, steps, pieces and joins of trajectories and batches."""

from dataclasses import fields, replace

import pytest
import torch

from mmalign.types import Batch, Trajectory
from tests import tabular


def example() -> Batch:
    """Five rows: groups (0, 1), (2), (3, 4) of three prompts; everything filled in."""
    made = tabular.batch([(1, 0), (5,), (2, 3)])
    made = tabular.scored(made, reference=tabular.Tabular(), behaviour=tabular.Tabular(seed=1))
    extra = {
        name: torch.randn(made.weight.shape, dtype=torch.float64)
        for name in ("step_reward", "returns", "advantage")
    }
    return replace(
        made,
        label=torch.tensor([True, False, True, True, False]),
        pairs=torch.tensor([[0, 1], [4, 3]]),
        coefficient=torch.tensor([0.5, 2.0]),
        denominator=2.5,
        counters={"dropped/ties": 1.0},
        metrics={"reward": (11.0, 5.0)},
        **extra,
    )


PER_ROW = (
    "group", "reward", "label", "weight", "step_reward", "reference", "behaviour", "values",
    "returns", "advantage",
)  # fmt: skip


def same_rows(got: Batch, rows: list[int], of: Batch) -> None:
    """Every field of ``got`` is that of ``of`` at ``rows``."""
    for name in PER_ROW:
        torch.testing.assert_close(getattr(got, name), getattr(of, name)[rows])
    torch.testing.assert_close(got.trajectory.mask, of.trajectory.mask[rows])
    for name, value in of.trajectory.stepwise.items():
        torch.testing.assert_close(got.trajectory.stepwise[name], value[rows])
    assert got.trajectory.outputs == [of.trajectory.outputs[i] for i in rows]
    for row, original in enumerate(rows):
        mine, theirs = got.trajectory.prompt_of[row], of.trajectory.prompt_of[original]
        for name in ("number", "name"):
            assert got.trajectory.static[name][mine] == of.trajectory.static[name][theirs]


def test_every_row_field_is_tested_here():
    tensors = {f.name for f in fields(Batch) if "Tensor" in str(f.type)}
    assert tensors == {*PER_ROW, "pairs", "coefficient"}


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 4], [4, 0, 3], [2], [1, 1]])
def test_rows_in_any_order(rows):
    batch = example()
    same_rows(batch.rows(torch.tensor(rows)), rows, batch)


def test_rows_drop_prompts_nobody_refers_to():
    """Rows 3 and 4 share the last of three prompts: one is left, in both kinds of storage."""
    made = example().trajectory.rows(torch.tensor([4, 3]))
    assert made.num_prompts == 1 and made.prompt_of.tolist() == [0, 0]
    assert made.static["number"].tolist() == [2] and made.static["name"] == ["prompt 2"]


def test_rows_keep_whole_pairs():
    """Rows (4, 3, 0): the pair (4, 3) becomes (0, 1); (0, 1) has lost a side."""
    batch = example().rows(torch.tensor([4, 3, 0]))
    assert batch.pairs.tolist() == [[0, 1]] and batch.coefficient.tolist() == [2.0]
    assert batch.denominator == 2.5 and batch.counters == {"dropped/ties": 1.0}


def test_steps():
    batch = example()
    piece = batch.steps(slice(2, 4))
    for name in PER_ROW:
        whole, cut = getattr(batch, name), getattr(piece, name)
        torch.testing.assert_close(cut, whole[:, 2:4] if whole.dim() == 2 else whole)
    torch.testing.assert_close(piece.trajectory.mask, batch.trajectory.mask[:, 2:4])
    torch.testing.assert_close(
        piece.trajectory.stepwise["symbol"], batch.trajectory.stepwise["symbol"][:, 2:4]
    )


def test_dependent_steps_cannot_be_cut():
    batch = tabular.batch([(1, 0)], separable=False)
    with pytest.raises(ValueError, match="depend on each other"):
        batch.steps(slice(0, 1))
    with pytest.raises(ValueError, match="depend on each other"):
        list(batch.microbatches(rows=None, steps=1, additive_over="step"))


def test_microbatches_by_group_keep_groups_whole():
    """Groups of 2, 1 and 2 rows in pieces of at most 3: (0, 1, 2), (3, 4). Of at most 1: groups."""
    for rows, expected in [
        (3, [[0, 1, 2], [3, 4]]),
        (1, [[0, 1], [2], [3, 4]]),
        (None, [[*range(5)]]),
    ]:
        pieces = list(example().microbatches(rows=rows, steps=None, additive_over="group"))
        assert [[int(o[4:]) for o in p.trajectory.outputs] for p in pieces] == expected
        assert sum(len(p.pairs) for p in pieces) == 2


def test_microbatches_by_step_cover_every_step_once():
    batch = example()
    pieces = list(batch.microbatches(rows=2, steps=4, additive_over="step"))
    assert [p.trajectory.mask.shape for p in pieces] == [(2, 4), (2, 2)] * 2 + [(1, 4), (1, 2)]
    assert sum(int(p.trajectory.mask.sum()) for p in pieces) == int(batch.trajectory.mask.sum())
    total = sum(p.weight.sum() for p in pieces)
    torch.testing.assert_close(total, batch.weight.sum())
    assert all(p.denominator == 2.5 for p in pieces)


def test_steps_of_a_group_objective_are_refused():
    with pytest.raises(ValueError, match="steps_per_microbatch"):
        list(example().microbatches(rows=None, steps=1, additive_over="group"))


def test_concatenate():
    """Rows in order, the shorter padded with masked zeros, groups, prompts and pairs kept apart."""
    first, second = example(), example().rows(torch.tensor([3, 4]))
    longest = int(second.trajectory.mask.sum(1).max())
    second = second.steps(slice(0, longest))
    whole = Batch.concatenate([first, second])
    assert len(whole) == 7 and whole.trajectory.mask.shape == (7, 6)
    same_rows(whole.rows(torch.arange(5)), [*range(5)], first)
    assert not whole.trajectory.mask[5:, longest:].any()
    back = whole.rows(torch.tensor([5, 6])).steps(slice(0, longest))
    same_rows(replace(back, group=second.group), [0, 1], second)
    assert whole.group[5:].tolist() == [5, 5] and whole.group[:5].tolist() == [0, 0, 1, 2, 2]
    assert whole.trajectory.prompt_of[5:].tolist() == [3, 3]
    assert whole.pairs.tolist() == [[0, 1], [4, 3], [6, 5]]
    assert whole.coefficient.tolist() == [0.5, 2.0, 2.0]
    assert whole.counters == {"dropped/ties": 2.0} and whole.metrics == {"reward": (22.0, 10.0)}


def test_concatenated_coefficients_default_to_one():
    first = example()
    whole = Batch.concatenate([replace(first, coefficient=None), first])
    assert whole.coefficient.tolist() == [1.0, 1.0, 0.5, 2.0]


def test_concatenate_of_unlike_parts_is_our_mistake():
    first = example()
    with pytest.raises(AssertionError, match="reference"):
        Batch.concatenate([first, replace(first, reference=None)])
    with pytest.raises(AssertionError, match="pairs"):
        Batch.concatenate([first, replace(first, pairs=None)])


def test_move_to_a_device():
    """The "meta" device stands for any other: everything follows."""
    batch = example().to("meta")
    tensors = [getattr(batch, f.name) for f in fields(Batch)]
    tensors += [*batch.trajectory.stepwise.values(), batch.trajectory.mask]
    tensors += [batch.trajectory.prompt_of, batch.trajectory.static["number"]]
    assert all(t.device.type == "meta" for t in tensors if isinstance(t, torch.Tensor))
    assert batch.trajectory.static["name"] == ["prompt 0", "prompt 1", "prompt 2"]


def test_values_are_frozen():
    with pytest.raises(AttributeError):
        example().reward = torch.zeros(5)
    with pytest.raises(TypeError):
        Trajectory(torch.ones(1, 1).bool())
