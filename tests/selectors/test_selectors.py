"""Selectors: what is kept, paired, dropped and counted."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from mmalign.objectives import DPO
from mmalign.protocols import Selector
from mmalign.selectors import SELECTORS, BestRandom, BestWorst, KeepAll
from mmalign.types import Batch
from tests import tabular


def names(batch: Batch) -> list[tuple[str, str]]:
    """The pairs by what their rows said."""
    outputs = batch.trajectory.outputs
    return [(outputs[w], outputs[r]) for w, r in batch.pairs.tolist()]


def test_best_and_worst_of_each_group():
    """Rewards (1, 3, 0, 2) and (5, 4): rows 1 over 2 and 4 over 5; four rows remain."""
    batch = BestWorst()(tabular.batch([(1, 3, 0, 2), (5, 4)]))
    assert names(batch) == [("row 1", "row 2"), ("row 4", "row 5")]
    assert batch.trajectory.outputs == ["row 1", "row 2", "row 4", "row 5"]
    assert batch.reward.tolist() == [3, 0, 5, 4]
    assert set(batch.counters.values()) == {0.0}


def test_ties_are_dropped_never_first_wins():
    batch = BestWorst()(tabular.batch([(2, 2, 2), (1, 0)]))
    assert names(batch) == [("row 3", "row 4")]
    assert batch.counters["dropped/ties"] == 1.0


def test_margin():
    """A spread of 1 is no more than a margin of 1; a spread of 2 is."""
    batch = BestWorst(min_margin=1.0)(tabular.batch([(1, 0), (2, 0), (3, 3)]))
    assert names(batch) == [("row 2", "row 3")]
    assert batch.counters["dropped/margin"] == 1.0 and batch.counters["dropped/ties"] == 1.0


@pytest.mark.parametrize("select", [BestWorst(), BestRandom()])
def test_unjudged_rows_and_groups_of_one(select):
    """NaN pairs with nobody; what is left of group 1 is a single row."""
    batch = select(tabular.batch([(math.nan, 3, 0), (math.nan, 1), (7,)]))
    assert names(batch) == [("row 1", "row 2")]
    assert batch.counters["dropped/unjudged"] == 2.0 and batch.counters["dropped/single"] == 2.0


@pytest.mark.parametrize("select", [BestWorst(), BestRandom()])
def test_nothing_left_still_can_be_scored(select):
    """One group stays, without a pair: loss 0, denominator 0."""
    batch = select(tabular.batch([(1, 1), (2, 2, 2)]))
    assert len(batch) == 2 and batch.pairs.shape == (0, 2)
    batch = DPO().credit(tabular.scored(batch, reference=tabular.Tabular()))
    loss = DPO().loss(tabular.Tabular().scores(batch.trajectory), batch)
    assert loss.total.item() == 0.0 and batch.denominator == 0.0
    assert batch.counters["dropped/ties"] == 2.0


def test_random_draws_from_those_that_earned_less():
    """Rewards (2, 2, 1, 0.5, 0): over 200 seeds every loser is drawn, the tied best never."""
    made = tabular.batch([(2, 2, 1, 0.5, 0)])
    drawn = {names(BestRandom(seed=seed)(made))[0] for seed in range(200)}
    assert drawn == {("row 0", "row 2"), ("row 0", "row 3"), ("row 0", "row 4")}
    near = {names(BestRandom(seed=s, min_margin=1.2)(made))[0] for s in range(200)}
    assert near == {("row 0", "row 3"), ("row 0", "row 4")}


def test_random_depends_on_seed_and_group_alone():
    """The same draw with other groups before it, and on another process without them."""
    rewards = [(1, 0), (5, 4, 3, 2, 1), (9, 8, 7)]
    whole = names(BestRandom(seed=3)(tabular.batch(rewards)))
    made = tabular.batch(rewards)
    for number in range(3):
        alone = made.rows((made.group == number).nonzero().squeeze(1))
        assert names(BestRandom(seed=3)(alone)) == [whole[number]]
    assert len({tuple(names(BestRandom(seed=s)(made))) for s in range(20)}) > 1


@pytest.mark.parametrize("select", [BestWorst(), BestRandom(seed=1)])
def test_order_of_the_groups_is_irrelevant(select):
    made = tabular.batch([(1, 3, 0, 2), (5, 4), (1, 1, 0)])
    order = torch.tensor([4, 5, 8, 6, 7, 0, 1, 2, 3])
    moved = made.rows(order)
    moved = replace(moved, group=torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2]))
    kept, after = (select(b) for b in (made, moved))
    rewards = [{tuple(b.reward[p].tolist()) for p in b.pairs} for b in (kept, after)]
    assert rewards[0] == rewards[1]


def test_everything_about_the_rows_comes_along():
    made = tabular.batch([(1, 3, 0, 2), (5, 4)])
    made = tabular.scored(made, reference=tabular.Tabular(), behaviour=tabular.Tabular(seed=1))
    batch = BestWorst()(made)
    rows = torch.tensor([1, 2, 4, 5])
    for name in ("weight", "reference", "behaviour", "values", "group", "reward"):
        torch.testing.assert_close(getattr(batch, name), getattr(made, name)[rows])
    assert batch.trajectory.num_prompts == 2


def test_keep_all_changes_nothing():
    made = tabular.batch([(1, 0, 2)])
    assert KeepAll()(made) is made
    assert len(DPO().credit(KeepAll()(made)).pairs) == 3


@pytest.mark.parametrize("select", [BestWorst(), BestRandom()])
def test_vector_rewards_are_refused(select):
    made = tabular.batch([(1, 0)])
    with pytest.raises(ValueError, match="combine the objectives"):
        select(replace(made, reward=torch.zeros(2, 2)))


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_selectors_are_configurations(name):
    built = TypeAdapter(SELECTORS[name]).validate_python({})
    assert isinstance(built, Selector)
    if "min_margin" in SELECTORS[name].__dataclass_fields__:
        with pytest.raises(ValueError, match="min_margin=-1"):
            SELECTORS[name](min_margin=-1.0)
