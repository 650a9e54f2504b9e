"""The clipped surrogate, the KL estimators and the critic's regression, with numbers by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.functional import clipped_surrogate, kl, value_loss
from tests.oracle import credit as oracle


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clip_takes_the_worse_of_two():
    """Ratios (1.5, 0.5, 1.5, 0.5), advantages (1, 1, -1, -1), epsilon 0.2.

    A = 1: min(1.5, 1.2) and min(0.5, 0.8), negated; A = -1: max(1.5, 1.2) and max(0.5, 0.8).
    """
    ratio, advantage = doubles(1.5, 0.5, 1.5, 0.5), doubles(1, 1, -1, -1)
    loss = clipped_surrogate(ratio.log(), torch.zeros(4), advantage, epsilon=0.2)
    torch.testing.assert_close(loss, doubles(-1.2, -0.5, 1.5, 0.8))


def test_dual_clip():
    """Ratios (4, 0.1, 4, 0.1), bound 3: only the third, 4 with A = -1, is bounded to 3."""
    ratio, advantage = doubles(4, 0.1, 4, 0.1), doubles(1, 1, -1, -1)
    args = (ratio.log(), torch.zeros(4), advantage)
    plain = clipped_surrogate(*args, epsilon=0.2)
    torch.testing.assert_close(plain, doubles(-1.2, -0.1, 4.0, 0.8))
    bounded = clipped_surrogate(*args, epsilon=0.2, dual_clip=3.0)
    torch.testing.assert_close(bounded, doubles(-1.2, -0.1, 3.0, 0.8))
    with pytest.raises(ValueError, match="dual_clip=1"):
        clipped_surrogate(*args, epsilon=0.2, dual_clip=1.0)


def test_upper_range_alone_moves():
    """Ratio 1.25 with A = 1: clipped at 1.2, not at 1.28; with A = -1 the upper range is idle."""
    ratio = doubles(1.25, 1.25).log()
    advantage = doubles(1, -1)
    narrow = clipped_surrogate(ratio, torch.zeros(2), advantage, epsilon=0.2, epsilon_high=0.2)
    wide = clipped_surrogate(ratio, torch.zeros(2), advantage, epsilon=0.2, epsilon_high=0.28)
    torch.testing.assert_close(narrow, doubles(-1.2, 1.25))
    torch.testing.assert_close(wide, doubles(-1.25, 1.25))


def test_agrees_with_an_independent_implementation():
    log_probs, behaviour, advantage = torch.randn(3, 5, 7).double().unbind(0)
    got = clipped_surrogate(log_probs, behaviour, advantage, epsilon=0.2, epsilon_high=0.3)
    expected = oracle.surrogate(
        log_probs.numpy(), behaviour.numpy(), advantage.numpy(), epsilon=0.2, epsilon_high=0.3
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_on_policy_gradient_is_reinforce():
    """At ratio 1 the loss is -A and its gradient that of -A log_probs."""
    log_probs = torch.randn(4, 3).double().requires_grad_()
    advantage = torch.randn(4, 3).double()
    loss = clipped_surrogate(log_probs, log_probs.detach(), advantage, epsilon=0.2)
    torch.testing.assert_close(loss, -advantage)
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantage)


def test_clipped_steps_have_no_gradient():
    """Beyond the range on the side the advantage pushes to; on the other side it pulls back."""
    log_probs = doubles(1.5, 0.5, 1.5, 0.5).log().requires_grad_()
    advantage = doubles(1, -1, -1, 1)
    clipped_surrogate(log_probs, torch.zeros(4), advantage, epsilon=0.2).sum().backward()
    torch.testing.assert_close(log_probs.grad, doubles(0, 0, 1.5, -0.5))


def test_one_advantage_a_row():
    log_probs, behaviour = torch.randn(2, 3, 3).double().unbind(0)
    advantage = doubles(1, -2, 0.5)
    row = clipped_surrogate(log_probs, behaviour, advantage, epsilon=0.2)
    full = clipped_surrogate(log_probs, behaviour, advantage[:, None].expand(3, 3), epsilon=0.2)
    torch.testing.assert_close(row, full)


def test_extreme_ratios_are_finite():
    log_probs = torch.tensor([500.0, -500.0, 500.0, -500.0], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss = clipped_surrogate(log_probs, torch.zeros(4), advantage, epsilon=0.2)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(log_probs.grad).all()


def test_no_gradient_to_behaviour_or_advantage():
    log_probs, behaviour, advantage = (torch.randn(3).double().requires_grad_() for _ in range(3))
    clipped_surrogate(log_probs, behaviour, advantage, epsilon=0.2).sum().backward()
    assert behaviour.grad is None and advantage.grad is None


def test_kl_values():
    """For d = 0.5 and -0.5: k1 = d, k2 = 1/8, k3 = exp(-d) - 1 + d."""
    policy, reference = doubles(-1.0, -1.0, -1.0), doubles(-1.5, -0.5, -1.0)
    torch.testing.assert_close(kl(policy, reference, kind="k1"), doubles(0.5, -0.5, 0.0))
    torch.testing.assert_close(kl(policy, reference, kind="k2"), doubles(0.125, 0.125, 0.0))
    k3 = doubles(math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, 0.0)
    torch.testing.assert_close(kl(policy, reference, kind="k3"), k3)
    with pytest.raises(ValueError, match="k4"):
        kl(policy, reference, kind="k4")


def test_k3_keeps_small_differences_and_bounds_large_ones():
    """For d = 1e-6, k3 = d^2 / 2 = 5e-13, which exp(-d) - 1 + d in float32 rounds to 0 or 1e-7."""
    small = kl(torch.tensor([1e-6]), torch.tensor([0.0]), kind="k3")
    assert 0 <= float(small) < 1e-12
    log_probs = torch.tensor([-300.0, 300.0], requires_grad=True)
    large = kl(log_probs, torch.zeros(2), kind="k3")
    large.sum().backward()
    assert torch.isfinite(large).all() and torch.isfinite(log_probs.grad).all()


POLICY, REFERENCE = (0.3, -0.2, 0.1), (0.0, 0.5, -0.4)


def expectation_gradient(kind: str, *, weighted: bool = False) -> Tensor:
    """Gradient by the logits of the mean of an estimator as a loss, by enumeration."""
    logits = doubles(*POLICY).requires_grad_()
    log_probs, reference = logits.log_softmax(0), doubles(*REFERENCE).log_softmax(0)
    estimate = kl(log_probs, reference, kind=kind)
    if weighted:
        estimate = estimate * (log_probs - log_probs.detach()).exp()
    (log_probs.detach().exp() * estimate).sum().backward()
    return logits.grad


def test_kl_estimators_by_enumeration():
    """KL 0.131165 is the mean of k1 and of k3; the mean of k2 is 0.123732."""
    log_probs = doubles(*POLICY).log_softmax(0)
    reference = doubles(*REFERENCE).log_softmax(0)
    mean = {k: float((log_probs.exp() * kl(log_probs, reference, kind=k)).sum()) for k in KINDS}
    assert mean == pytest.approx({"k1": 0.131165, "k2": 0.123732, "k3": 0.131165}, abs=1e-6)


KINDS = ("k1", "k2", "k3")
TRUE_GRADIENT = (0.075279, -0.204430, 0.129150)


@pytest.mark.parametrize(
    ("kind", "weighted", "expected"),
    [
        ("k1", False, (0.0, 0.0, 0.0)),
        ("k2", False, TRUE_GRADIENT),
        ("k3", False, (0.111035, -0.246657, 0.135623)),
        ("k3", True, TRUE_GRADIENT),
    ],
)
def test_kl_gradients_by_enumeration(kind, weighted, expected):
    """As the docstring says: k1 none, k2 the reverse KL, k3 the forward KL; ratio x k3 reverse."""
    got = expectation_gradient(kind, weighted=weighted)
    torch.testing.assert_close(got, doubles(*expected), atol=1e-6, rtol=0)


def test_k3_gradient_is_that_of_the_forward_kl():
    logits = doubles(*POLICY).requires_grad_()
    reference = doubles(*REFERENCE).log_softmax(0)
    forward = (reference.exp() * (reference - logits.log_softmax(0))).sum()
    assert forward.item() == pytest.approx(0.142617, abs=1e-6)
    forward.backward()
    torch.testing.assert_close(expectation_gradient("k3"), logits.grad)


def sequences() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A policy and a reference over 5 symbols and 2 steps, the second depending on the first.

    Returns the logits of both (``[1 + 5, 5]``: first step, then one row per first symbol) and the
    25 sequences with their row numbers ``[25, 2]``.
    """
    policy, reference = torch.randn(2, 6, 5).double().unbind(0)
    symbols = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    rows = torch.stack([torch.zeros(25, dtype=torch.int64), 1 + symbols[:, 0]], dim=1)
    return policy, reference, symbols, rows


def test_kl_of_a_two_step_policy():
    """Summed over steps and averaged over the policy's 25 sequences, k1 and k3 give the exact KL.

    The gradient of k2 summed over steps is that of each step's own KL at the states visited.
    """
    policy, reference, symbols, rows = sequences()
    log_policy, log_reference = policy.log_softmax(-1), reference.log_softmax(-1)
    taken = log_policy[rows, symbols]
    held = log_reference[rows, symbols]
    probability = taken.sum(1).exp()
    exact = (probability * (taken.sum(1) - held.sum(1))).sum()
    for kind in ("k1", "k3"):
        estimate = (probability * kl(taken, held, kind=kind).sum(1)).sum()
        torch.testing.assert_close(estimate, exact)

    logits = policy.clone().requires_grad_()
    taken = logits.log_softmax(-1)[rows, symbols]
    (k2,) = torch.autograd.grad((probability * kl(taken, held, kind="k2").sum(1)).sum(), logits)
    every = (logits.log_softmax(-1).exp() * (logits.log_softmax(-1) - log_reference)).sum(-1)
    visits = torch.cat([torch.ones(1).double(), log_policy[0].exp()])
    (by_state,) = torch.autograd.grad((visits * every).sum(), logits)
    torch.testing.assert_close(k2, by_state)


def test_value_loss_is_clipped():
    """V 1, old 0.5, target 2, range 0.2: max((1 - 2)^2, (0.7 - 2)^2) / 2 = 1.69 / 2 = 0.845."""
    args = doubles(1.0), doubles(0.5), doubles(2.0)
    torch.testing.assert_close(value_loss(*args, clip=0.2), doubles(0.845))
    torch.testing.assert_close(value_loss(*args, clip=None), doubles(0.5))
    # Inside the range the clip is idle: (0.6 - 2)^2 / 2 = 0.98.
    near = value_loss(doubles(0.6), doubles(0.5), doubles(2.0), clip=0.2)
    torch.testing.assert_close(near, doubles(0.98))


def test_gradients():
    torch.manual_seed(1)
    log_probs, other, advantage = (torch.randn(8).double() for _ in range(3))
    log_probs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, other, advantage, epsilon=0.2, dual_clip=3.0), log_probs
    )
    for kind in KINDS:
        assert torch.autograd.gradcheck(lambda x, k=kind: kl(x, other, kind=k), log_probs)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, other, advantage, clip=0.2), log_probs)
