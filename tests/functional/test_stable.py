"""Elementary functions at their edges."""

import math

import pytest
import torch

from mmalign.functional import exp_bounded, log1mexp, masked_mean, masked_sum


def test_log1mexp_values():
    """log(1 - 1/2) at x = -log 2; -exp(-50) at -50; log(1e-6) from -1e-6 on."""
    x = torch.tensor([-math.log(2), -50.0, -1e-6, -1e-30, 0.0], dtype=torch.float64)
    expected = [-math.log(2), -math.exp(-50), *[math.log(-math.expm1(-1e-6))] * 3]
    torch.testing.assert_close(log1mexp(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.bfloat16, 0.02), (torch.float32, 1e-4), (torch.float64, 1e-6)]
)
def test_log1mexp_gradient_is_finite(dtype, rtol):
    """-exp(x) / (1 - exp(x)) inside; finite at both ends, also where exp(x) rounds to 1."""
    x = torch.tensor([-1e-9, -1e-5, -0.5, -1.0, -50.0, -500.0], dtype=dtype, requires_grad=True)
    log1mexp(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    inside = x.detach()[1:]
    torch.testing.assert_close(
        x.grad[1:], inside.exp() / torch.expm1(inside), rtol=rtol, atol=1e-30
    )


def test_log1mexp_gradcheck():
    x = torch.tensor([-0.1, -0.6, -0.7, -3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log1mexp, x)


def test_masked_entries_may_be_infinite():
    """Neither value nor gradient of the kept entries sees what is masked: no 0 times infinity."""
    x = torch.tensor([[1.0, -math.inf], [math.nan, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    masked_sum(x, mask).sum().backward()
    torch.testing.assert_close(masked_sum(x, mask), torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_mean_of_nothing_is_zero():
    """(2 + 4) / 2 in the first row, nothing in the second."""
    x = torch.tensor([[2.0, 4.0, 9.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(masked_mean(x, mask), torch.tensor([3.0, 0.0]))


def test_exp_bounded():
    x = torch.tensor([0.0, 1.0, 1e6, -1e6], requires_grad=True)
    y = exp_bounded(x)
    torch.testing.assert_close(y, torch.tensor([0.0, 1.0, 20.0, -20.0]).exp())
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
