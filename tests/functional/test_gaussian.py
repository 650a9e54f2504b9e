"""Gaussian steps: nats per latent element."""

import math

import pytest
import torch

from mmalign.functional import gaussian_kl, gaussian_log_probs


@pytest.mark.parametrize(
    ("x", "mean", "std", "expected"),
    [
        # DDIM move: alpha-bar 0.5 -> 0.6, x = 1, eps = 0.2, eta = 1.
        (0.9, 1.0438053, 0.3651484, 0.0109631),
        # SDE of a rectified flow: sigma 0.6 -> 0.5, x = 1, v = 0.3, a = 0.7.
        (0.9, 0.9014, 0.2711088, 0.3862831),
        # -log(0.5) - log(2 pi) / 2 at the mean.
        (1.0, 1.0, 0.5, math.log(2) - math.log(2 * math.pi) / 2),
    ],
)
def test_published_numbers(x, mean, std, expected):
    """-(x - mean)^2 / (2 std^2) - log std - log(2 pi) / 2, whatever the size of the latent."""
    for size in [(1, 1, 1, 1), (2, 4, 3, 3)]:
        got = gaussian_log_probs(torch.full(size, x), torch.full(size, mean), std)
        assert got.shape == size[:1]
        torch.testing.assert_close(got, torch.full(size[:1], expected), atol=2e-6, rtol=0)


def test_equals_the_mean_of_torchs_density():
    x, mean = torch.randn(2, 3, 5, 4, 4, 4).double().unbind(0)
    std = torch.rand(3, 5, 1, 1, 1).double() + 0.1
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((-3, -2, -1))
    torch.testing.assert_close(gaussian_log_probs(x, mean, std), expected)


def test_other_numbers_of_latent_axes():
    x, mean = torch.randn(2, 3, 7, 16).unbind(0)
    normal = torch.distributions.Normal(mean, 0.5).log_prob(x)
    torch.testing.assert_close(
        gaussian_log_probs(x, mean, 0.5, latent_dims=1), normal.mean(-1), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(
        gaussian_log_probs(x, mean, 0.5, latent_dims=2), normal.mean((1, 2)), atol=1e-6, rtol=1e-5
    )


def test_the_sample_is_data():
    """A gradient reaches the mean, and never the recorded sample (it would cancel the former)."""
    x, mean = torch.randn(2, 1, 1, 2, 2).double().unbind(0)
    x.requires_grad_()
    mean = mean.clone().requires_grad_()
    gaussian_log_probs(x, mean, 0.5).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(mean.grad, (x.detach() - mean.detach()) / 0.25 / 4)


def test_gradcheck():
    x = torch.randn(2, 1, 2, 2).double()
    mean = torch.randn(2, 1, 2, 2).double().requires_grad_()
    std = (torch.rand(2, 1, 1, 1).double() + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: gaussian_log_probs(x, m, s), (mean, std))
    assert torch.autograd.gradcheck(lambda m, s: gaussian_kl(m, x, s), (mean, std))


def test_half_precision_is_computed_in_float32():
    x = torch.randn(1, 4, 8, 8)
    got = gaussian_log_probs(x.bfloat16(), x.bfloat16() + 0.01, 0.1)
    assert got.dtype == torch.float32
    exact = gaussian_log_probs(x.bfloat16().float(), (x.bfloat16() + 0.01).float(), 0.1)
    torch.testing.assert_close(got, exact)


def test_kl_is_the_closed_form():
    """(mean - reference)^2 / (2 std^2), mean over the latent; 0 where they agree."""
    mean, reference = torch.randn(2, 3, 2, 4, 4).double().unbind(0)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, 0.3), normal(reference, 0.3))
    torch.testing.assert_close(gaussian_kl(mean, reference, 0.3), expected.mean((-3, -2, -1)))
    assert (gaussian_kl(mean, mean, 0.3) == 0).all()


def test_kl_of_an_sde_move_includes_its_time():
    """Drifts d apart, deviation s, time dt: means d dt apart, std s sqrt(dt), KL d^2 dt / 2s^2.

    With d = 0.4, s = 0.8, dt = 0.1: 0.16 * 0.1 / (2 * 0.64) = 0.0125.
    """
    drift, s, dt = 0.4, 0.8, 0.1
    mean, reference = (
        torch.full((1, 1, 1, 1), drift * dt).double(),
        torch.zeros(1, 1, 1, 1).double(),
    )
    got = gaussian_kl(mean, reference, s * math.sqrt(dt))
    torch.testing.assert_close(got, torch.tensor([0.0125], dtype=torch.float64))


def test_misuse():
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="std=0"):
        gaussian_log_probs(x, x, 0)
    with pytest.raises(ValueError, match="latent_dims=0"):
        gaussian_log_probs(x, x, 1.0, latent_dims=0)
