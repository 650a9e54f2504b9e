"""DiscoPOP's loss has a stretch on which it rises with the margin, and it may begin there."""

import math

import pytest
import torch

from mmalign import functional as F


def slope(margin: float, tau: float, beta: float = 0.05) -> float:
    """Derivative of the loss by ``z = beta D`` at a margin ``D`` in nats."""
    zero, length = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    s_w = torch.full((1,), margin, dtype=torch.float64, requires_grad=True)
    F.discopop(s_w, zero, zero, zero, length, length, beta=beta, tau=tau).sum().backward()
    return float(s_w.grad) / beta


@pytest.mark.parametrize("tau", [0.05, 0.1, 0.2, 1.0])
def test_slope_at_the_reference(tau):
    """At z = 0 the share m is 1/2: logistic -1/2 times 1/2, exponential -1 times 1/2, and the
    share's own 1 / (4 tau) times 1 - log 2. Their sum is 0 at tau = (1 - log 2) / 3 = 0.102."""
    assert slope(0.0, tau) == pytest.approx(-0.75 + (1 - math.log(2)) / (4 * tau))


def test_where_the_published_width_turns():
    """With beta = tau = 0.05 the margin is pushed down between -2.37 and 1.44 nats."""
    assert slope(-2.38, 0.05) < 0 < slope(-2.36, 0.05)
    assert slope(1.43, 0.05) > 0 > slope(1.45, 0.05)
