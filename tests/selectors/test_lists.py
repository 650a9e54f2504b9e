"""Selectors that make several pairs of a group, on rewards written out by hand."""

import math

import pytest

from mmalign.selectors import Adjacent, AllPairs, BestAgainstRest
from tests import tabular
from tests.selectors.test_selectors import names

REWARDS = [(2, 3, 2, 0), (math.nan, 1, 1), (4, 5)]
"""Rows 0 to 3, 4 to 6 and 7 to 8."""


def compared(select, rewards=REWARDS):
    batch = select(tabular.batch(rewards))
    return {(int(w[4:]), int(r[4:])) for w, r in names(batch)}, batch


def test_all_pairs():
    """Four rows with one tie give 6 - 1 pairs; a margin of 1 leaves those two or more apart."""
    found, batch = compared(AllPairs())
    assert found == {(1, 0), (1, 2), (1, 3), (0, 3), (2, 3), (8, 7)}
    assert batch.counters["dropped/ties"] == 2.0 and batch.counters["dropped/unjudged"] == 1.0
    assert compared(AllPairs(min_margin=1))[0] == {(1, 3), (0, 3), (2, 3)}


def test_the_best_against_the_rest():
    assert compared(BestAgainstRest())[0] == {(1, 0), (1, 2), (1, 3), (8, 7)}
    assert compared(BestAgainstRest(), [(2, 2, 1, 0)])[0] == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_neighbours_in_rank():
    """3 beats both 2s, both 2s beat 0, and 3 does not meet 0."""
    assert compared(Adjacent())[0] == {(1, 0), (1, 2), (0, 3), (2, 3), (8, 7)}


@pytest.mark.parametrize("select", [AllPairs(), BestAgainstRest(), Adjacent()])
def test_what_is_left_out_is_counted(select):
    """The tied group makes no pair and goes; so does the group of one judged row."""
    _, batch = compared(select, [(1, 1), (math.nan, 2), (1, 0)])
    assert len(batch) == 2 and batch.reward.tolist() == [1.0, 0.0]
    assert batch.counters["dropped/ties"] == 1.0 and batch.counters["dropped/unjudged"] == 1.0


def test_negative_margin_is_refused():
    with pytest.raises(ValueError, match="min_margin=-1 must not be negative"):
        AllPairs(min_margin=-1)
