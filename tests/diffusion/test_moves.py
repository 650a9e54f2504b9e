"""The moves against numbers worked out by hand, known marginals, and the limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from mmalign.diffusion.moves import clean_and_noise, ddim_move, flow_sde_move
from mmalign.functional import PAIRWISE, gaussian_log_probs


def latent(value: float) -> Tensor:
    return torch.full((1, 4, 2, 2), value)


def level(value: float) -> Tensor:
    return torch.tensor([value])


def test_ddim_move_by_hand() -> None:
    """From alpha 0.5 to 0.6 at x = 1 with noise 0.2 and eta 1.

    clean = (1 - sqrt(0.5) 0.2) / sqrt(0.5) = 1.2142136; variance = (0.4 / 0.5) (1 - 0.5 / 0.6) =
    0.1333333, std = 0.3651484; direction = sqrt(0.4 - 0.1333333) = 0.5163978;
    mean = sqrt(0.6) 1.2142136 + 0.5163978 * 0.2 = 1.0438053. At 0.9: z = -0.3938309, so the log
    density is -0.0775514 + 1.0074516 - 0.9189385 = 0.0109631 up to rounding.
    """
    mean, std = ddim_move(
        latent(1.0), latent(0.2), alpha=level(0.5), alpha_next=level(0.6), eta=1.0
    )
    torch.testing.assert_close(std, torch.tensor([0.3651484]))
    torch.testing.assert_close(mean, latent(1.0438053))
    log_prob = gaussian_log_probs(latent(0.9), mean, std[:, None, None, None])
    torch.testing.assert_close(log_prob, torch.tensor([0.0109631]), atol=1e-6, rtol=0)


def test_flow_move_by_hand() -> None:
    """From sigma 0.6 to 0.5 at x = 1 with velocity 0.3 and a = 0.7.

    s = 0.7 sqrt(0.6 / 0.4) = 0.8573214, s^2 = 0.735; std = s sqrt(0.1) = 0.2711088;
    drift = 0.735 / 1.2 = 0.6125; mean = 1 - 0.06125 + 0.3 (1 + 0.245)(-0.1) = 0.9014.
    At 0.9 the log density is -0.0000133 + 1.3052350 - 0.9189385 = 0.3862831.
    """
    mean, std = flow_sde_move(
        latent(1.0), latent(0.3), sigma=level(0.6), sigma_next=level(0.5), noise_level=0.7
    )
    torch.testing.assert_close(std, torch.tensor([0.2711088]))
    torch.testing.assert_close(mean, latent(0.9014))
    log_prob = gaussian_log_probs(latent(0.9), mean, std[:, None, None, None])
    torch.testing.assert_close(log_prob, torch.tensor([0.3862831]), atol=1e-6, rtol=0)


def test_flow_move_is_a_step_against_the_score() -> None:
    """The same move written with the score ``-(x + (1 - sigma) v) / sigma``."""
    x, v = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    sigma, after = torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.7, 0.45, 0.1])
    mean, std = flow_sde_move(x, v, sigma=sigma, sigma_next=after, noise_level=0.7)
    wide, dt = sigma[:, None, None, None], (after - sigma)[:, None, None, None]
    spread = std[:, None, None, None].square() / -dt
    score = -(x + (1 - wide) * v) / wide
    torch.testing.assert_close(mean, x + (v - spread / 2 * score) * dt)


def test_without_noise_the_moves_are_the_schedulers_own() -> None:
    """Noise level 0 is the Euler step; eta 0 leaves no variance and keeps all of the direction."""
    x, v = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    mean, std = flow_sde_move(x, v, sigma=level(1.0), sigma_next=level(0.8), noise_level=0.0)
    torch.testing.assert_close(mean, x - 0.2 * v)
    assert std.item() == 0.0
    mean, std = ddim_move(x, v, alpha=level(0.3), alpha_next=level(0.6), eta=0.0)
    clean = (x - math.sqrt(0.7) * v) / math.sqrt(0.3)
    torch.testing.assert_close(mean, math.sqrt(0.6) * clean + math.sqrt(0.4) * v)
    assert std.item() == 0.0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_says_the_same(prediction_type: str) -> None:
    """A perfect answer of each type gives back the clean latent and the noise."""
    clean, noise, alpha = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([0.2, 0.9])
    signal, spread = alpha.sqrt()[:, None, None, None], (1 - alpha).sqrt()[:, None, None, None]
    answers = {
        "epsilon": noise,
        "v_prediction": signal * noise - spread * clean,
        "sample": clean,
    }
    found = clean_and_noise(
        signal * clean + spread * noise,
        answers[prediction_type],
        alpha,
        prediction_type=prediction_type,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(found, (clean, noise), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_both_ends_are_finite(eta: float) -> None:
    """The last move ends on alpha = 1 without variance; the first starts from almost no signal."""
    x, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    mean, std = ddim_move(
        x, noise, alpha=torch.tensor([0.0047, 0.98]), alpha_next=torch.tensor([0.03, 1.0]), eta=eta
    )
    assert torch.isfinite(mean).all() and torch.isfinite(std).all()
    assert std[1].item() == 0.0
    mean, std = flow_sde_move(
        x,
        noise,
        sigma=torch.tensor([1.0, 0.001]),
        sigma_next=torch.tensor([0.9, 0.0]),
        noise_level=0.7,
    )
    assert torch.isfinite(mean).all() and torch.isfinite(std).all()
    # At sigma = 1 the next level stands in: s^2 = 0.49 * 1 / 0.1 = 4.9, std = sqrt(0.49).
    torch.testing.assert_close(std[0], torch.tensor(0.7))


def test_log_prob_is_the_mean_over_the_latent() -> None:
    """Against torch's Normal: the published clip ranges assume the mean, not the sum."""
    mean, std = flow_sde_move(
        torch.randn(3, 4, 8, 8),
        torch.randn(3, 4, 8, 8),
        sigma=torch.tensor([0.9, 0.5, 0.2]),
        sigma_next=torch.tensor([0.8, 0.4, 0.1]),
        noise_level=0.7,
    )
    wide = std[:, None, None, None]
    after = mean + wide * torch.randn_like(mean)
    expected = Normal(mean, wide).log_prob(after).mean(dim=(1, 2, 3))
    torch.testing.assert_close(gaussian_log_probs(after, mean, wide), expected)


@pytest.mark.parametrize(("noise_level", "steps", "expected"), [(0.0, 400, 0.5), (0.7, 400, 0.5)])
def test_the_stochastic_flow_keeps_the_marginals(
    noise_level: float, steps: int, expected: float
) -> None:
    """Clean values are N(2, 0.5^2) and the velocity is exact: the walk must end on N(2, 0.5^2).

    ``E[noise - clean | x] = (sigma - (1 - sigma) 0.25) / var (x - 2 (1 - sigma)) - 2``, with
    ``var = 0.25 (1 - sigma)^2 + sigma^2``.
    """
    x = torch.randn(20_000, 1, 1, 1)
    sigmas = torch.linspace(1, 0, steps + 1)
    for before, after in pairwise(sigmas):
        variance = 0.25 * (1 - before) ** 2 + before**2
        v = (before - 0.25 * (1 - before)) / variance * (x - 2 * (1 - before)) - 2
        mean, std = flow_sde_move(
            x, v, sigma=before[None], sigma_next=after[None], noise_level=noise_level
        )
        x = mean + std * torch.randn_like(x)
    assert x.mean().item() == pytest.approx(2.0, abs=0.015)
    assert x.std().item() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_keeps_the_marginals(eta: float) -> None:
    """The same for DDIM: the exact noise is ``sqrt(1 - a) / var (x - 2 sqrt(a))``."""
    alphas = torch.cat([torch.cos(torch.linspace(1.56, 0.01, 400)) ** 2, torch.ones(1)])
    x = 2 * alphas[0].sqrt() + torch.randn(20_000, 1, 1, 1)
    for before, after in pairwise(alphas):
        variance = 0.25 * before + 1 - before
        noise = (1 - before).sqrt() / variance * (x - 2 * before.sqrt())
        mean, std = ddim_move(x, noise, alpha=before[None], alpha_next=after[None], eta=eta)
        x = mean + std * torch.randn_like(x)
    assert x.mean().item() == pytest.approx(2.0, abs=0.015)
    assert x.std().item() == pytest.approx(0.5, abs=0.015)


def test_diffusion_dpo_by_hand() -> None:
    """Errors 0.100 and 0.120, of the reference 0.101 and 0.119, beta 5000.

    -0.5 * 5000 ((0.100 - 0.120) - (0.101 - 0.119)) = 5, and -log sigmoid(5) = 0.00671535: DPO on
    log-probs of minus one half of the error.
    """
    one = torch.ones(1)
    errors = [torch.tensor([e]) for e in (0.100, 0.120, 0.101, 0.119)]
    loss = PAIRWISE["dpo"](*[-0.5 * e for e in errors], one, one, beta=5000.0)
    torch.testing.assert_close(loss, torch.tensor([0.00671535]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["ddim", "flow"])
def test_the_score_function_has_the_gradient_of_the_expected_reward(kind: str) -> None:
    """Two moves whose network answers theta everywhere, and a reward -mean (x - 1)^2 at their end.

    The moves are affine in latent and theta, so the expected latent is that of the moves without
    noise, m(theta), and ``d E r / d theta = -2 (m - 1) dm / d theta``. Log-probs are means over the
    D elements, so D times the gradient of ``sum_t l_t`` is the score; its second moment for a move
    is ``D (c / std)^2`` with c the mean's response to theta, so the move with the least noise for
    its response is the loudest.
    """
    torch.manual_seed(0)
    rows, size = 40_000, 4
    moves: dict[str, list[tuple[float, float]]] = {
        "ddim": [(0.1, 0.6), (0.6, 0.97)],
        "flow": [(0.9, 0.5), (0.5, 0.2)],
    }

    def move(x: Tensor, theta: Tensor, at: tuple[float, float]) -> tuple[Tensor, Tensor]:
        before, after = (torch.full((len(x),), value) for value in at)
        answer = theta.view(-1, 1, 1, 1).expand_as(x)
        if kind == "ddim":
            return ddim_move(x, answer, alpha=before, alpha_next=after, eta=1.0)
        return flow_sde_move(x, answer, sigma=before, sigma_next=after, noise_level=0.7)

    theta = torch.tensor([0.3], requires_grad=True)
    mean = torch.full((1, size, 1, 1), 0.5)
    for at in moves[kind]:
        mean, _ = move(mean, theta, at)
    expected = mean.mean()
    (exact,) = torch.autograd.grad(-((expected - 1) ** 2), theta)

    each = torch.full((rows,), 0.3, requires_grad=True)
    x, scores = torch.full((rows, size, 1, 1), 0.5), []
    for at in moves[kind]:
        mean, std = move(x, each, at)
        after = (mean + std.view(-1, 1, 1, 1) * torch.randn_like(mean)).detach()
        log_prob = gaussian_log_probs(after, mean, std.view(-1, 1, 1, 1))
        (found,) = torch.autograd.grad(size * log_prob.sum(), each, retain_graph=True)
        response = torch.autograd.grad(mean.sum(), each)[0] / size
        expected_square = float(size * (response[0] / std[0]) ** 2)
        assert float(found.square().mean()) == pytest.approx(expected_square, rel=0.05)
        scores.append(found)
        x = after
    reward = -(x - 1).square().mean((1, 2, 3))
    estimate = (sum(scores) * (reward - reward.mean())).mean()
    assert float(estimate) == pytest.approx(float(exact), rel=0.05)
