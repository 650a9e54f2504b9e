"""Anchors, and margins position by position: numbers, landmarks, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from mmalign.functional import anchor, dpo, stepwise_margin


def test_anchor_by_hand() -> None:
    """log(1 + exp(-(0.5 * 2 - 0.25))) = log(1 + exp(-0.75)) = 0.386871; at 0 and shift 0 log 2."""
    h = torch.tensor([2.0, 0.0], dtype=torch.float64)
    assert float(anchor(h, beta=0.5, shift=0.25)[0]) == pytest.approx(0.386871, abs=1e-6)
    assert float(anchor(h, beta=0.5)[1]) == pytest.approx(math.log(2))
    shifts = torch.tensor([0.25, 0.0], dtype=torch.float64)
    assert anchor(h, beta=0.5, shift=shifts).tolist() == pytest.approx([0.386871, math.log(2)])


def test_anchor_pushes_up_and_never_overflows() -> None:
    """The gradient in h is -beta sigmoid(shift - beta h): -0.05 at 0 with beta 0.1."""
    h = torch.tensor([0.0, -1e5, 1e5], dtype=torch.float64, requires_grad=True)
    loss = anchor(h, beta=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert torch.isfinite(loss).all()
    assert gradient.tolist() == pytest.approx([-0.05, -0.1, 0.0])


def test_margin_of_one_step_is_dpo() -> None:
    """Where an output is one step long, the two are the same."""
    h = torch.randn(5, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    zero, one = torch.zeros(5), torch.ones(5)
    plain = dpo(h[:, 0, 0], h[:, 1, 0], zero, zero, one, one, beta=0.3)
    found = stepwise_margin(h, torch.ones_like(h), beta=0.3)
    assert torch.allclose(found[:, 0], plain)


def test_margin_weighs_each_side_and_padding_is_log_2() -> None:
    """Weights 2 and 3 on h = 1 and -1, beta 0.1: log(1 + exp(-0.5)) = 0.474077."""
    h = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    weight = torch.tensor([[[2.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    found = stepwise_margin(h, weight, beta=0.1)
    assert found[0].tolist() == pytest.approx([0.474077, math.log(2)], abs=1e-6)
    assert torch.autograd.gradcheck(
        lambda x: stepwise_margin(x, weight, beta=0.1), h.requires_grad_()
    )
