"""XPO, INPO, TRPA and MODPO on the two pairs that every loss of pairs is tried on."""

import math

import pytest
import torch
from torch import Tensor

from mmalign import functional


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SIX = (
    doubles(-2.2, -2.0), doubles(-3.5, -1.8), doubles(-2.7, -1.8), doubles(-3.2, -2.2),
    torch.tensor([3, 2]), torch.tensor([2, 4]),
)  # fmt: skip
"""Pairs A and B: D = (0.8, -0.6)."""
AGREE = (*SIX[:2], *SIX[:2], *SIX[4:])
"""Policy and reference agree."""
RIGHT = torch.tensor([False, True])


def close(found: Tensor, *wanted: float) -> None:
    torch.testing.assert_close(found, doubles(*wanted), atol=1e-6, rtol=0)


def test_xpo_by_hand():
    """beta 0.5, alpha 0.01; the reference's sample is the rejected side of A (s = -3.5) and the
    chosen one of B (-2.0): 0.513015 - 0.035 and 0.854355 - 0.02.
    """
    found = functional.xpo(*SIX, beta=0.5, alpha=0.01, chosen_is_reference=RIGHT)
    close(found, 0.478015, 0.834355)


def test_xpo_without_a_bonus_is_dpo():
    found = functional.xpo(*SIX, beta=0.5, alpha=0.0, chosen_is_reference=RIGHT)
    torch.testing.assert_close(found, functional.dpo(*SIX, beta=0.5))
    found = functional.xpo(*SIX, beta=0.5, alpha=0.0, chosen_is_reference=RIGHT, form="ipo")
    torch.testing.assert_close(found, functional.ipo(*SIX, beta=0.5, reduction="sum"))


def test_xpo_pushes_away_from_what_the_reference_says():
    """At the reference DPO's gradient is -0.25 by the chosen and 0.25 by the rejected side; the
    bonus adds 0.01 to the reference's sample, which descent makes less likely.
    """
    leaves = [part.clone().requires_grad_() for part in AGREE[:2]]
    loss = functional.xpo(*leaves, *AGREE[2:], beta=0.5, alpha=0.01, chosen_is_reference=RIGHT)
    loss.sum().backward()
    close(leaves[0].grad, -0.25, -0.24)
    close(leaves[1].grad, 0.26, 0.25)


BEFORE = {"before_w": doubles(-2.4, -1.9), "before_l": doubles(-3.3, -2.0)}


def test_inpo_by_hand():
    """eta 0.5, tau 0.1, margins of policy (1.3, -0.2), reference (0.5, 0.4), iterate (0.9, 0.1):
    z = 1.3 - 0.2 0.5 - 0.8 0.9 = 0.48 and -0.2 - 0.08 - 0.08 = -0.36; target 1.
    """
    found = functional.inpo(*SIX, eta=0.5, tau=0.1, **BEFORE)
    close(found, 0.52**2, 1.36**2)


def test_inpo_is_ipo_where_the_iterate_drops_out():
    """With tau = eta, or where the iterate is the reference: (0.8 - 1)^2 and (-0.6 - 1)^2."""
    ipo = functional.ipo(*SIX, beta=0.5, reduction="sum")
    close(ipo, 0.04, 2.56)
    torch.testing.assert_close(functional.inpo(*SIX, eta=0.5, tau=0.5, **BEFORE), ipo)
    same = {"before_w": SIX[2], "before_l": SIX[3]}
    torch.testing.assert_close(functional.inpo(*SIX, eta=0.5, tau=0.1, **same), ipo)


def test_inpo_gradient_by_hand():
    """2 (z - 1) = -1.04 and -2.72 by the chosen side; none by the iterate before."""
    leaves = [part.clone().requires_grad_() for part in SIX[:2]]
    before = {k: v.clone().requires_grad_() for k, v in BEFORE.items()}
    functional.inpo(*leaves, *SIX[2:], eta=0.5, tau=0.1, **before).sum().backward()
    close(leaves[0].grad, -1.04, -2.72)
    close(leaves[1].grad, 1.04, 2.72)
    assert before["before_w"].grad is None and before["before_l"].grad is None


def test_trpa_by_hand():
    """Means h/n: A (0.5/3, -0.3/2), B (-0.1, 0.1); beta 0.5 of the differences (0.316667, -0.2).

    With scale 1 it is length-normalised DPO; with 2.5 log(1 + exp(-0.395833)) and
    log(1 + exp(0.25)).
    """
    found = functional.trpa(*SIX, beta=0.5)
    close(found, 0.617111, 0.744397)
    torch.testing.assert_close(found, functional.ln_dpo(*SIX, beta=0.5))
    close(functional.trpa(*SIX, beta=0.5, scale=2.5), 0.514689, 0.825939)
    close(functional.trpa(*SIX, beta=0.5, scale=doubles(2.5, 1.0)), 0.514689, 0.744397)


MARGIN = doubles(0.5 * (1 - 0), 0.5 * (0 - 2))
"""Weight 0.5 of another reward that gives the sides of A (1, 0) and those of B (0, 2)."""


def test_modpo_by_hand():
    """(0.4 - 0.5) / 0.5 = -0.2 and (-0.3 + 1) / 0.5 = 1.4: log(1 + exp(0.2)), log(1 + exp(-1.4));
    as hinges 1.2 and 0.
    """
    close(functional.modpo(*SIX, beta=0.5, weight=0.5, margin=MARGIN), 0.798139, 0.220417)
    close(functional.modpo(*SIX, beta=0.5, weight=0.5, margin=MARGIN, form="hinge"), 1.2, 0.0)


def test_modpo_is_dpo_where_nobody_else_speaks():
    nothing = doubles(0.0, 0.0)
    for weight in (1.0, 0.25):
        found = functional.modpo(*SIX, beta=0.5, weight=weight, margin=nothing)
        torch.testing.assert_close(found, functional.dpo(*SIX, beta=0.5 / weight))
    found = functional.modpo(*SIX, beta=0.5, weight=1.0, margin=nothing, form="hinge")
    torch.testing.assert_close(found, functional.hinge(*SIX, beta=0.5))


def test_modpo_gradient_by_hand():
    """-(beta/w) sigmoid(-z): -sigmoid(0.2) = -0.549834 and -sigmoid(-1.4) = -0.197816; the margin
    has none.
    """
    leaf, margin = SIX[0].clone().requires_grad_(), MARGIN.clone().requires_grad_()
    loss = functional.modpo(leaf, *SIX[1:], beta=0.5, weight=0.5, margin=margin)
    loss.sum().backward()
    close(leaf.grad, -0.549834, -0.197816)
    assert margin.grad is None


def test_at_the_reference():
    """log 2, with XPO's bonus; INPO's squared target 1 / (4 eta^2)."""
    two = math.log(2)
    found = functional.xpo(*AGREE, beta=0.5, alpha=0.01, chosen_is_reference=RIGHT)
    close(found, two - 0.035, two - 0.02)
    same = {"before_w": SIX[0], "before_l": SIX[1]}
    close(functional.inpo(*AGREE, eta=0.5, tau=0.1, **same), 1.0, 1.0)
    close(functional.trpa(*AGREE, beta=0.5, scale=2.5), two, two)
    nothing = doubles(0.0, 0.0)
    close(functional.modpo(*AGREE, beta=0.5, weight=0.5, margin=nothing), two, two)


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="form='hinge' is unknown to xpo"):
        functional.xpo(*SIX, beta=1, alpha=0, chosen_is_reference=RIGHT, form="hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form='ipo' is unknown to modpo"):
        functional.modpo(*SIX, beta=1, weight=1, margin=MARGIN, form="ipo")  # type: ignore[arg-type]
