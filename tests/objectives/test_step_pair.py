"""D3PO and SPO: values by hand, the band of the ratio, windows of steps."""

import math
from dataclasses import replace

import pytest
import torch

from mmalign import functional
from mmalign.objectives import D3PO, SPO
from mmalign.types import Batch, Scores
from tests import tabular


def test_golden_values():
    """Log-ratios 0.3 and -0.02 under a clip of 0.1: log q = log 1.1 = 0.0953102 and -0.02.

    The margin is 0.1153102. Times 0.1: log(1 + exp(-0.01153102)) = 0.6873983; times 10:
    log(1 + exp(-1.153102)) = 0.2743355.
    """
    w, r = torch.tensor([0.3]).double(), torch.tensor([-0.02]).double()
    d3po = functional.step_pair(w, r, beta=D3PO().beta, clip=D3PO().clip)
    assert d3po.item() == pytest.approx(0.6873983, abs=1e-7)
    spo = functional.step_pair(w, r, beta=SPO().beta, clip=SPO().clip)
    assert spo.item() == pytest.approx(0.2743355, abs=1e-7)


def test_gradient_inside_and_outside_the_band():
    """Inside, dL/dw = -beta sigma(-beta (w - l)); a side outside has none, and the other keeps its.

    w = 0.05, l = 0: sigma(-0.5) = 0.3775407, so dL/dw = -3.775407 = -dL/dl with beta 10. With
    w = 0.3 the margin is 10 log 1.1 = 0.953102 and dL/dl = 10 sigma(-0.953102) = 2.782661.
    """
    w = torch.tensor([0.05, 0.3], dtype=torch.float64, requires_grad=True)
    r = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    functional.step_pair(w, r, beta=10.0, clip=0.1).sum().backward()
    assert w.grad.tolist() == pytest.approx([-3.775407, 0.0], abs=1e-5)
    assert r.grad.tolist() == pytest.approx([3.775407, 10 / (1 + 1.1**10)], abs=1e-5)


def pairs_of_paths(steps: int = 4) -> Batch:
    """Two groups of two rows; the last step of the fourth row is missing."""
    made = tabular.trajectory([steps, steps, steps, steps - 1], [0, 0, 1, 1])
    return Batch(
        trajectory=made,
        group=torch.tensor([0, 0, 1, 1]),
        reward=torch.tensor([1.0, 0.0, 0.0, 2.0]).double(),
        weight=made.mask.double(),
        reference=torch.zeros(4, steps).double(),
    )


def test_steps_count_where_both_sides_have_them():
    """4 + 3 steps of pairs; at the reference log 2 each, elsewhere the sum over them by hand."""
    batch = D3PO().credit(pairs_of_paths())
    assert batch.denominator == 7.0 and batch.pairs.tolist() == [[0, 1], [3, 2]]
    nothing = Scores(log_probs=torch.zeros(4, 4).double())
    assert D3PO().loss(nothing, batch).total.item() == pytest.approx(7 * math.log(2))
    log_probs = torch.zeros(4, 4).double()
    log_probs[0, 1], log_probs[1, 2], log_probs[2, 3] = 0.05, 0.02, 9.0
    found = D3PO(beta=1.0).loss(Scores(log_probs=log_probs), batch)
    by_hand = 5 * math.log(2) + math.log1p(math.exp(-0.05)) + math.log1p(math.exp(0.02))
    assert found.total.item() == pytest.approx(by_hand)
    assert [float(x) for x in found.metrics["rewards/chosen"]] == pytest.approx([0.05, 7.0])
    assert [float(x) for x in found.metrics["rewards/accuracies"]] == pytest.approx([1.0, 7.0])


def test_groups_stay_whole_while_steps_are_cut():
    """Windows of one step, a row at a time: both sides of a pair are in each piece."""
    batch = D3PO().credit(pairs_of_paths())
    pieces = list(batch.microbatches(rows=1, steps=1, additive_over="group_step"))
    assert len(pieces) == 8
    assert all(len(p.pairs) == 1 and p.trajectory.mask.shape == (2, 1) for p in pieces)
    assert all(p.denominator == 7.0 for p in pieces)


def test_a_pair_without_weight_counts_nothing():
    """A coefficient of 0, which keeps a process without data in step, adds no loss or gradient."""
    batch = replace(pairs_of_paths(), pairs=torch.tensor([[0, 1], [3, 2]]))
    batch = SPO().credit(replace(batch, coefficient=torch.tensor([1.0, 0.0])))
    assert batch.denominator == 4.0
    leaf = torch.full((4, 4), 0.01, dtype=torch.float64, requires_grad=True)
    loss = SPO().loss(Scores(log_probs=leaf), batch)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(4 * math.log(2))
    assert (leaf.grad[:2] != 0).all() and (leaf.grad[2:] == 0).all()


def test_ratios_beyond_any_float_stay_finite():
    """Log-ratios of +-1e4 nats: the band decides, and no side has a gradient."""
    w = torch.tensor([1e4, -1e4], requires_grad=True)
    each = functional.step_pair(w, -w, beta=10.0, clip=0.1)
    each.sum().backward()
    assert torch.isfinite(each).all() and (w.grad == 0).all()
