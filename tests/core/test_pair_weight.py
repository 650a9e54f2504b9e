"""Weights of the steps of a pair: carried by every cut and join, and read in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign import pairing
from mmalign.data.files import File
from mmalign.data.writing import write_preferences
from mmalign.objectives import DPO, IPO
from mmalign.policy import Policy
from mmalign.sources import Preferences
from mmalign.step_weights import recorded_weights
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch, Preference, Scores, Trajectory
from tests import tabular


def batch(*, seed: int = 0, longest: int = 4) -> Batch:
    """Three groups of two rows, a pair each, with weights of their own."""
    made = tabular.trajectory([2, longest, 3, 3, 1, longest], [0, 0, 1, 1, 2, 2], seed=seed)
    plain = Batch(
        trajectory=made,
        group=torch.arange(6) // 2,
        reward=torch.tensor([1.0, 0.0] * 3),
        weight=made.mask.double(),
        reference=torch.zeros(made.mask.shape).double(),
        pairs=torch.arange(6).view(3, 2),
    )
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 2, longest, generator=draw).double() * plain.pair_weights()
    return replace(plain, pair_weight=weights)


def test_without_weights_of_their_own_pairs_have_those_of_their_rows() -> None:
    whole = batch()
    plain = replace(whole, pair_weight=None)
    assert torch.equal(plain.pair_weights(), plain.weight.view(3, 2, -1))
    assert torch.equal(whole.pair_weights(), whole.pair_weight)


def test_they_follow_their_pairs() -> None:
    """Through rows, windows of steps, and copies."""
    whole = batch()
    assert whole.pair_weight is not None
    part = whole.rows(torch.tensor([4, 5, 0, 2, 3]))
    assert part.pairs.tolist() == [[3, 4], [0, 1]]
    assert torch.equal(part.pair_weight, whole.pair_weight[[1, 2]])
    assert torch.equal(whole.steps(slice(1, 3)).pair_weight, whole.pair_weight[:, :, 1:3])
    assert torch.equal(whole.to("cpu").pair_weight, whole.pair_weight)


def test_joined_they_are_padded() -> None:
    """A part without weights gets those of its rows; without any, there are none."""
    short, long = batch(longest=4), replace(batch(seed=1, longest=6), pair_weight=None)
    joined = Batch.concatenate([short, long])
    assert joined.pair_weight.shape == (6, 2, 6)
    assert torch.equal(joined.pair_weight[:3, :, :4], short.pair_weight)
    assert not torch.any(joined.pair_weight[:3, :, 4:])
    assert torch.equal(joined.pair_weight[3:], long.pair_weights())
    assert Batch.concatenate([long, long]).pair_weight is None


def test_dropped_pairs_take_their_weights_along() -> None:
    whole = batch()
    rows = whole.trajectory.rows(torch.tensor([0, 0, 2, 3, 4, 5]))
    kept = pairing.without_identical(replace(whole, trajectory=rows))
    assert kept.pairs.tolist() == [[2, 3], [4, 5]]
    assert torch.equal(kept.pair_weight, whole.pair_weight[1:])
    assert pairing.ordered_pairs(whole).pair_weight is None


@pytest.mark.parametrize("objective", [DPO(beta=0.5), IPO(beta=0.5)])
def test_pairwise_objectives_sum_with_them(objective: DPO | IPO) -> None:
    """Weighing a pair equals weighing its rows, where every row is in one pair; pieces add up."""
    model, whole = tabular.Tabular(), batch()
    by_rows = replace(whole, weight=whole.pair_weight.flatten(0, 1), pair_weight=None)
    scores = model.scores(whole.trajectory)
    losses = [objective.loss(scores, objective.credit(b)).total for b in (whole, by_rows)]
    assert float(losses[0]) == pytest.approx(float(losses[1]))
    credited = objective.credit(whole)
    pieces = credited.microbatches(rows=2, steps=None, additive_over="group")
    parts = [objective.loss(model.scores(p.trajectory), p).total for p in pieces]
    assert len(parts) == 3
    assert float(sum(parts)) == pytest.approx(float(losses[0]))


def test_a_row_may_weigh_differently_in_two_pairs() -> None:
    """Row 0 against row 1 with weight 3, and against row 2 with weight 1; beta 1, h = 1, 0, 0."""
    made = tabular.trajectory([1, 1, 1], [0, 0, 0])
    whole = Batch(
        trajectory=made,
        group=torch.zeros(3).long(),
        reward=torch.tensor([1.0, 0.0, 0.0]),
        weight=made.mask.double(),
        reference=torch.zeros(3, 1).double(),
        pairs=torch.tensor([[0, 1], [0, 2]]),
        pair_weight=torch.tensor([[3.0, 1.0], [1.0, 1.0]]).unsqueeze(2),
    )
    scores = Scores(log_probs=torch.tensor([[1.0], [0.0], [0.0]]).double())
    loss = DPO(beta=1.0).loss(scores, whole).total
    expected = -torch.nn.functional.logsigmoid(torch.tensor([3.0, 1.0])).sum()
    assert float(loss) == pytest.approx(float(expected))


def test_a_file_can_carry_them(tmp_path: Path) -> None:
    """A column a side; a side or a row without one has ones; DPO sums with the weights."""
    policy = TextPolicy(model="tinyworld/text", max_new_tokens=40).load()
    pairs = TinyWorld(task="arithmetic", size=2).preferences()
    lengths = encoded(policy, pairs).mask.sum(1).tolist()
    rising = [i / 10 for i in range(lengths[1])]
    records = [replace(pairs[0], meta={**pairs[0].meta, "rejected_weights": rising}), pairs[1]]
    write_preferences(tmp_path / "pairs.jsonl", records)
    spec = Preferences(data=File(path=str(tmp_path / "pairs.jsonl")), batch_size=2, shuffle=False)
    batch = next(iter(spec.build(policy, seed=0)))
    assert batch.pair_weight is not None
    assert batch.pair_weight[0, 1, : lengths[1]].tolist() == pytest.approx(rising)
    others = batch.pair_weight[[0, 1, 1], [0, 0, 1]]
    assert torch.equal(others, batch.weight[[0, 2, 3]])
    assert not batch.pair_weight[0, 1, lengths[1] :].any()
    plain = replace(spec, data=TinyWorld(task="arithmetic", size=2))
    assert next(iter(plain.build(policy, seed=0))).pair_weight is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 1.0], r"row 7, column 'chosen_weights': 2 weights for 3 steps; .*end of the answer"),
        ([1.0, -1.0, 1.0], "holds -1.0"),
        ([1.0, None, 1.0], "holds None"),
        ("1 1 1", "must be a list of numbers"),
    ],
)
def test_wrong_columns_are_named(values: object, message: str) -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(ValueError, match=message):
        recorded_weights([{"chosen_weights": values}], mask, numbers=[7])


def encoded(policy: Policy, pairs: Sequence[Preference]) -> Trajectory:
    return policy.adapter.encode(
        [p.prompt for p in pairs],
        [[p.chosen, p.rejected] for p in pairs],
        generators=[torch.Generator() for _ in pairs],
    )
