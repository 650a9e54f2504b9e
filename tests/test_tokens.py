import math

import pytest
import torch

from mmalign import tokens
from tests.oracle import symbols

P = torch.tensor([0.5, 0.25, 0.125, 0.125])


def test_numbers_of_a_distribution_of_halves():
    """The numbers of p = (1/2, 1/4, 1/8, 1/8).

    Entropy: (1/2 * 1 + 1/4 * 2 + 2 * 1/8 * 3) bits = 1.75 bits = 1.75 log 2. Top 2: mass 3/4,
    renormalised (2/3, 1/3), entropy log 3 - 2/3 log 2. KL to the flat one: log 4 - entropy.
    """
    logits = tokens.step_logits(P.log() + 3.0)
    bit = math.log(2)
    assert tokens.entropy(logits) == pytest.approx(1.75 * bit, abs=1e-6)
    mass, spread = symbols.top_k(logits, 2)
    assert mass == pytest.approx(0.75, abs=1e-6)
    assert spread == pytest.approx(math.log(3) - 2 / 3 * bit, abs=1e-6)
    assert symbols.exact_kl(logits, torch.zeros(4)) == pytest.approx(0.25 * bit, abs=1e-6)
    chosen = tokens.log_probs_of(logits.expand(4, 4), torch.arange(4))
    torch.testing.assert_close(chosen, P.log())


def test_temperature_two_takes_square_roots():
    """At T = 2 odds become their square roots: 1/2 to 1/8 is 4, so 2."""
    scaled = tokens.step_logits(P.log(), temperature=2.0)
    chosen = tokens.log_probs_of(scaled.expand(2, 4), torch.tensor([0, 2]))
    assert (chosen[0] - chosen[1]).exp() == pytest.approx(2.0, abs=1e-5)


def test_a_banned_symbol_has_no_probability_and_breaks_no_gradient():
    """Without the symbol of 1/2, the rest doubles: entropy of (1/2, 1/4, 1/4) is 1.5 bits."""
    raw = P.log().clone().requires_grad_()
    logits = tokens.step_logits(raw, banned=(0,))
    spread = tokens.entropy(logits)
    assert spread.item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    reference = tokens.step_logits(torch.zeros(4), banned=(0,))
    divergence = symbols.exact_kl(logits, reference)
    assert divergence.item() == pytest.approx(math.log(3) - 1.5 * math.log(2), abs=1e-6)
    (spread + divergence + tokens.log_probs_of(logits, torch.tensor(1))).backward()
    assert raw.grad.isfinite().all() and raw.grad[0] == 0 and raw.grad[1] != 0


def test_inverse_cdf_by_hand():
    """Cumulative 0, .5, .75, .75, 1: symbols 0 and 3 have probability 0 and are never chosen."""
    p = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.25, 0.0]).expand(6, 6)
    u = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-24])
    assert tokens.inverse_cdf_sample(p, u).tolist() == [1, 1, 2, 2, 4, 4]
    unnormalised = tokens.inverse_cdf_sample(p * 3, u)
    assert unnormalised.tolist() == [1, 1, 2, 2, 4, 4]


def test_bfloat16_logits_are_scored_in_float32():
    logits = tokens.step_logits(torch.randn(3, 100, dtype=torch.bfloat16))
    assert tokens.log_probs_of(logits, torch.tensor([1, 2, 3])).dtype == torch.float32
