"""AdamW against its formula, and its state out and in again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmalign import invariants
from mmalign.optim import optimizer_of, optimizer_tensors, restore_optimizer
from mmalign.run import Training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_three_updates_by_hand() -> None:
    """In float64: m and v are decayed means, each over 1 - beta^t; the decay is decoupled."""
    training = Training(learning_rate=0.01, weight_decay=0.1, adam_beta2=0.95)
    model = network().double()
    optimizer = optimizer_of(dict(model.named_parameters()), training)
    weights = model[0].weight.detach().clone()
    m, v = torch.zeros_like(weights), torch.zeros_like(weights)
    for t in (1, 2, 3):
        step(model, optimizer, t)
        gradient = model[0].weight.grad
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        away = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        weights = weights * (1 - 0.01 * 0.1) - 0.01 * away
        torch.testing.assert_close(model[0].weight.detach(), weights, rtol=1e-12, atol=0)


def test_restored_is_the_same_bit_for_bit() -> None:
    """Two updates, moved to another optimizer, one more: as three in one."""
    found: list[dict[str, Any]] = []
    for moved in (False, True):
        model = network()
        parameters = dict(model.named_parameters())
        optimizer = optimizer_of(parameters, Training(learning_rate=0.01))
        step(model, optimizer, 1)
        step(model, optimizer, 2)
        if moved:
            kept = {k: t.clone() for k, t in optimizer_tensors(optimizer, parameters).items()}
            optimizer = optimizer_of(parameters, Training(learning_rate=0.01))
            restore_optimizer(optimizer, parameters, kept)
        step(model, optimizer, 3)
        found.append({**dict(model.named_parameters()), **optimizer_tensors(optimizer, parameters)})
    assert len(found[0]) == 4 * 4
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert {float(found[1][k]) for k in found[1] if k.endswith("|step")} == {3.0}


def transposed() -> tuple[nn.Parameter, Tensor]:
    """A parameter that lies in memory column by column, and a gradient that lies row by row."""
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(3, 4).T), torch.randn(4, 3)


def test_a_parameter_in_another_memory_layout() -> None:
    """Backward passes lay the gradient out as the parameter: the formula's update.

    The first update of AdamW moves every entry by the learning rate against its gradient's sign.
    """
    parameter, gradient = transposed()
    optimizer = optimizer_of({"w": parameter}, Training(learning_rate=0.1))
    before = parameter.detach().clone()
    (parameter * gradient).sum().backward()
    assert invariants.gradient_fits({"w": parameter}).ok
    optimizer.step()
    expected = before - 0.1 * gradient.sign()
    torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-5)


def test_a_gradient_in_another_memory_layout_is_seen() -> None:
    """Put there by hand, it would be read in the wrong order by the fused kernel."""
    parameter, gradient = transposed()
    parameter.grad = gradient
    line = invariants.gradient_fits({"critic.w": parameter})
    assert not line.ok and "critic.w" in line.detail
