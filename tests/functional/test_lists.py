"""Losses of ranked lists: numbers by hand, identities, and what a wrong one would get wrong."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional import lambda_dpo, pro
from mmalign.functional.lists import lambda_weights

ALL = torch.ones(1, 3, dtype=torch.bool)


def doubles(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


A, R = doubles(-0.8, -1.0, -1.5), doubles(2.0, 1.0, -1.0)
"""Mean log-probs and scores; by hand below."""


def test_pro_by_hand():
    """Against k = 1: T = (3, 1, 3), exponents (-2.4, -1.0, -4.5):
    L_1 = log(1 + exp(1.4) + exp(-2.1)) = 1.644353. Against k = 2: T = (2, 2), exponents
    (-2.0, -3.0): L_2 = log(1 + exp(-1)) = 0.313262.
    """
    assert pro(A, R, ALL).item() == pytest.approx(1.644353 + 0.313262, abs=1e-6)


def test_pro_of_ranks_is_plackett_luce():
    """All T 1: log(1 + exp(-0.2) + exp(-0.7)) + log(1 + exp(-0.5)) = 0.839546 + 0.474077."""
    found = pro(A, R, ALL, temperatures="ranks").item()
    by_hand = math.log(1 + math.exp(-0.2) + math.exp(-0.7)) + math.log(1 + math.exp(-0.5))
    assert found == pytest.approx(by_hand) == pytest.approx(1.313623, abs=1e-6)


def test_pro_of_two_is_logistic():
    """Scores apart by 1: -log sigmoid(a_1 - a_2); by 3 with beta 2: of 6 (a_1 - a_2)."""
    two = torch.ones(1, 2, dtype=torch.bool)
    found = pro(doubles(-0.8, -1.0), doubles(1, 0), two).item()
    assert found == pytest.approx(math.log(1 + math.exp(-0.2)))
    found = pro(doubles(-0.8, -1.0), doubles(1, -2), two, beta=2.0).item()
    assert found == pytest.approx(math.log(1 + math.exp(-1.2)))


def test_pro_gradient_by_hand():
    """Two outputs, scores apart by 3, a = (-0.8, -1.0): -3 sigmoid(-0.6) = -1.063031."""
    a = doubles(-0.8, -1.0).requires_grad_()
    pro(a, doubles(1, -2), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    slope = 3 / (1 + math.exp(0.6))
    torch.testing.assert_close(a.grad, doubles(-slope, slope))


def test_pro_of_ties():
    """Equal scores are not compared: 0 for a tied list, and a tie adds nothing of its own.

    Scores (1, 0, 0): only the first meets the others, log(1 + exp(a_2 - a_1) + exp(a_3 - a_1)).
    """
    assert pro(A, doubles(1, 1, 1), ALL).item() == 0.0
    by_hand = math.log(1 + math.exp(-0.2) + math.exp(-0.7))
    assert pro(A, doubles(1, 0, 0), ALL).item() == pytest.approx(by_hand)
    a = A.clone().requires_grad_()
    pro(a, doubles(1, 1, 1), ALL).sum().backward()
    assert a.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_pro_does_not_underflow():
    """Sums of hundreds of nats in float32: exp(-3000) is 0 and its logarithm would be -inf."""
    a = torch.tensor([[-1000.0, -900.0]], requires_grad=True)
    loss = pro(a, torch.tensor([[3.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(300.0)
    loss.sum().backward()
    assert a.grad.tolist() == [[-3.0, 3.0]]


@pytest.mark.parametrize("formula", [pro, lambda_dpo])
def test_order_and_padding_do_not_matter(formula):
    """Outputs, values and scores move together; what is not valid enters no maximum or rank."""
    value, score = doubles(0.2, -0.4, 0.9), doubles(1.0, 0.5, 0.0)
    whole = formula(value, score, ALL)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(formula(value[:, order], score[:, order], ALL), whole)
    wide = torch.cat([value, doubles(99.0)], 1), torch.cat([score, doubles(7.0)], 1)
    valid = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(formula(*wide, valid), whole)


@pytest.mark.parametrize("formula", [pro, lambda_dpo])
def test_gradients_are_those_of_the_value(formula):
    if formula is lambda_dpo:
        # Its weights have no gradient, and no small step changes a rank.
        formula = lambda r, *rest: lambda_dpo(r, *rest, weights="ones")  # noqa: E731
    value = doubles(0.2, -0.4, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: formula(v, doubles(1.0, 0.5, 0.0), ALL), value)


V, IMPLICIT = doubles(1.0, 0.5, 0.0), doubles(0.2, 0.5, -0.1)
"""Values of three branches, and implicit rewards that rank them (2, 1, 3)."""


def test_lambda_weights_by_hand():
    """Gains (2, sqrt 2, 1); ranks (2, 1, 3), discounts 1 / log(1 + rank) = 0.910239, 1.442695 and
    0.721348.

    lambda_12 = 0.585786 x 0.532456 = 0.311905, lambda_13 = 1 x 0.188892,
    lambda_23 = 0.414214 x 0.721348 = 0.298792.
    """
    weight = lambda_weights(IMPLICIT, V, ALL)[0]
    assert weight[0, 1].item() == pytest.approx(0.311905, abs=1e-6)
    assert weight[0, 2].item() == pytest.approx(0.188892, abs=1e-6)
    assert weight[1, 2].item() == pytest.approx(0.298792, abs=1e-6)
    torch.testing.assert_close(weight, weight.T)
    assert weight.diagonal().tolist() == [0.0, 0.0, 0.0]


def test_lambda_dpo_by_hand():
    """The weights above times -log sigmoid of -0.3, 0.3, 0.6: 0.266478 + 0.104713 + 0.130718."""
    assert lambda_dpo(IMPLICIT, V, ALL).item() == pytest.approx(0.501909, abs=1e-6)


def test_two_outputs_of_weight_one_are_a_pair_of_dpo():
    two = torch.ones(1, 2, dtype=torch.bool)
    found = lambda_dpo(doubles(0.4, -0.3), doubles(1, 0), two, weights="ones")
    torch.testing.assert_close(found, -logsigmoid(doubles(0.7))[0])


def test_the_best_output_rises():
    """Gradient descent on the loss, from any order: the first branch ends first, the last last."""
    r = doubles(-0.5, 0.0, 0.5).requires_grad_()
    for _ in range(200):
        (slope,) = torch.autograd.grad(lambda_dpo(r, V, ALL).sum(), r)
        with torch.no_grad():
            r -= 0.2 * slope
    assert r[0].tolist() == sorted(r[0].tolist(), reverse=True)


def test_an_output_does_not_meet_itself_or_its_equals():
    """Values (1, 1, 0): two comparisons, and without differences in value none at all."""
    r = doubles(0.0, 0.0, 0.0)
    found = lambda_dpo(r, doubles(1, 1, 0), ALL, weights="ones").item()
    assert found == pytest.approx(2 * math.log(2))
    assert lambda_dpo(IMPLICIT, doubles(1, 1, 1), ALL).item() == 0.0


def test_at_the_start_ranks_are_those_of_the_scores():
    """All implicit rewards 0 up to rounding, whose signs then decide nothing: ranks 1, 2, 3, so
    lambda_12 = 0.585786 (1.442695 - 0.910239), and a gradient that is not 0.
    """
    noise = doubles(-1e-7, 1e-7, 0.0).requires_grad_()
    weight = lambda_weights(noise, V, ALL)[0]
    assert weight[0, 1].item() == pytest.approx(0.311905, abs=1e-6)
    lambda_dpo(noise, V, ALL).sum().backward()
    assert noise.grad[0, 0] < 0 < noise.grad[0, 2]


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="temperatures='gaps'"):
        pro(A, R, ALL, temperatures="gaps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights='dcg'"):
        lambda_dpo(A, R, ALL, weights="dcg")  # type: ignore[arg-type]
