"""Token-level losses: numbers, identities, gradients.

The fixture of TDPO has three symbols. The policy's logits are (1, 0, -1), (0.5, 0.5, 0) on the
chosen side, with symbols 0 and 1, and (0, 1, 0) on the rejected side, with symbol 2; the
reference's are zeros on the chosen side and (0.2, 0, -0.2) on the rejected. So

    D_w = 0.831599, D_l = -0.239543, K_w = 0.335068, K_l = 0.137101.
"""

import math

import pytest
import torch
from torch import Tensor

from mmalign import functional as F
from mmalign.head import Head, head_scores

LOGITS = torch.tensor([[1.0, 0, -1], [0.5, 0.5, 0], [0, 1, 0]], dtype=torch.float64)
REFERENCE = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0.2, 0, -0.2]], dtype=torch.float64)
SYMBOLS = torch.tensor([0, 1, 2])
BETA = 0.5


def sums(logits: Tensor) -> list[Tensor]:
    """The six arguments of TDPO's losses, from the head: each ``[1]``, chosen side first."""
    head = Head(weight=torch.eye(3, dtype=torch.float64))
    found = head_scores(
        logits, SYMBOLS, head, want=frozenset({"kl_forward"}), against=(REFERENCE, head)
    )
    alone = head_scores(REFERENCE, SYMBOLS, head)["log_probs"]
    torch.testing.assert_close(found["reference"], alone)
    every = (found["log_probs"], found["reference"], found["kl_forward"])
    return [part.sum(0, keepdim=True) for values in every for part in (values[:2], values[2:])]


def test_the_fixture():
    s_w, s_l, ref_w, ref_l, kl_w, kl_l = sums(LOGITS)
    found = [float(x) for x in (s_w - ref_w, s_l - ref_l, kl_w, kl_l)]
    assert found == pytest.approx([0.831599, -0.239543, 0.335068, 0.137101], abs=2e-6)


@pytest.mark.parametrize(
    ("loss", "settings", "value", "norm"),
    [
        (F.tdpo1, {}, 0.425380, 0.200039),
        (F.tdpo2, {"alpha": 0.5}, 0.442806, None),
        # The value of tdpo1, and another gradient: the chosen side's divergence is not increased.
        (F.tdpo2, {"alpha": 1.0}, 0.425380, 0.151154),
        (F.tdpo2, {"alpha": 0.0}, 0.460796, None),
    ],
)
def test_tdpo(loss, settings, value, norm):
    """Losses, and the length of the gradient by the chosen side's logits; alpha 0 is DPO."""
    logits = LOGITS.clone().requires_grad_()
    found = loss(*sums(logits), beta=BETA, **settings)
    assert found.item() == pytest.approx(value, abs=2e-6)
    found.sum().backward()
    if norm is not None:
        assert float(logits.grad[:2].norm()) == pytest.approx(norm, abs=2e-6)


def test_tdpo_without_weight_is_dpo_and_tdpo_at_the_reference_is_log_2():
    six = sums(LOGITS)
    dpo = F.dpo(*six[:4], None, None, beta=BETA)
    torch.testing.assert_close(F.tdpo2(*six, beta=BETA, alpha=0.0), dpo)
    zero = torch.zeros(1)
    for loss in (F.tdpo1, F.tdpo2):
        assert loss(*[zero] * 6, beta=BETA).item() == pytest.approx(math.log(2))


def test_the_gradients_by_the_divergences():
    """With z = beta (D - a (K_l - K_w)), the slope by K_l is a beta sigmoid(-z); by K_w it is its
    negative in the first form and nothing in the second."""
    six = [torch.zeros(1, requires_grad=True) for _ in range(6)]
    F.tdpo1(*six, beta=BETA).backward()
    assert [x.grad.item() for x in six[4:]] == pytest.approx([-0.25, 0.25])
    six = [torch.zeros(1, requires_grad=True) for _ in range(6)]
    F.tdpo2(*six, beta=BETA, alpha=0.5).backward()
    assert six[4].grad is None and six[5].grad.item() == pytest.approx(0.125)


def test_critical_weights():
    """Scores 0.9 and 0.2 leave 0.1 and 0.8; the gradient is that of 1 - exp."""
    log_scores = torch.tensor([0.9, 0.2, 1.0]).log().requires_grad_()
    weights = F.critical_weights(log_scores)
    assert weights.tolist() == pytest.approx([0.1, 0.8, 0.0], abs=1e-6)
    # A log-probability that rounding has lifted above 0 makes no negative weight.
    assert F.critical_weights(torch.tensor(1e-7)).item() == 0.0


def test_on_policy_weights_by_hand():
    """A step of probabilities (1/2, 1/4, 1/4) has a sum of squares of 3/8: taking the first symbol
    gives log(4/3), the second log(2/3); their mean is log(8/9) / 2. Masked steps do not count."""
    log_probs = torch.tensor([[0.5, 0.25, 1e-9]]).log()
    collision = torch.tensor([[3 / 8, 3 / 8, 1.0]]).log()
    mask = torch.tensor([[True, True, False]])
    found = F.on_policy_log_weights(log_probs.requires_grad_(), collision, mask)
    assert not found.requires_grad
    assert found.tolist() == pytest.approx([math.log(8 / 9) / 2], abs=1e-6)
    uniform = torch.full((1, 3), -math.log(7))
    assert F.on_policy_log_weights(uniform, uniform, mask).tolist() == [0.0]
    assert F.on_policy_log_weights(log_probs, collision, ~mask & mask).tolist() == [0.0]


def test_a_gaussian_step_on_its_mean_lies_half_log_2_above_its_collision():
    """Density 1 / (s sqrt(2 pi)) against an integral of the square of 1 / (2 s sqrt(pi))."""
    std = torch.tensor([0.3, 2.0])
    x = torch.zeros(2, 1, 1, 1)
    top = F.gaussian_log_probs(x, x, std.view(2, 1, 1, 1))
    assert (top - F.gaussian_log_collision(std)).tolist() == pytest.approx([math.log(2) / 2] * 2)
