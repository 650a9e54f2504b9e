"""Numbers of the masks and of the noise."""

import pytest
import torch

from mmalign.vision.corruption import PIXELS, alpha_bar, attended, noised, with_noise


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_nothing_and_everything_is_hidden_at_the_ends() -> None:
    assert bool(attended(1000, 0.0, generator=generator()).all())
    assert not bool(attended(1000, 1.0, generator=generator()).any())


def test_the_share_of_hidden_tokens_is_the_threshold() -> None:
    """100,000 draws at 0.99: standard deviation sqrt(0.99 * 0.01 / 1e5) = 0.0003."""
    shown = attended(100_000, 0.99, generator=generator())
    assert float((~shown).float().mean()) == pytest.approx(0.99, abs=0.002)


def test_a_token_is_shown_from_its_number_on() -> None:
    """The same numbers under two thresholds: what 0.8 shows, 0.5 shows too."""
    rho = torch.rand(50, generator=generator())
    assert torch.equal(attended(50, 0.5, generator=generator()), rho >= 0.5)
    assert torch.equal(attended(50, 0.8, generator=generator()), rho >= 0.8)


def test_what_is_left_of_a_picture_after_500_steps() -> None:
    """Published values of the schedule; after one step 1 - beta_0, where
    beta_0 = sigmoid(-6) * 0.00499 + 1e-5 = 0.0024726 * 0.00499 + 1e-5 = 2.2338e-5."""
    assert alpha_bar(500) == pytest.approx(0.747392, abs=5e-7)
    assert alpha_bar(501) == pytest.approx(0.745519, abs=5e-7)
    assert alpha_bar(0) == 1.0
    assert 1 - alpha_bar(1) == pytest.approx(2.2338e-5, rel=1e-4)


def test_noise_keeps_the_variance_and_that_share_of_the_picture() -> None:
    """A picture of ones: mean sqrt(0.747392) = 0.86452, variance 1 - 0.747392 = 0.252608."""
    found = noised(torch.ones(3, 200, 200), 500, generator=generator())
    assert float(found.mean()) == pytest.approx(0.86452, abs=0.005)
    assert float(found.var()) == pytest.approx(0.252608, abs=0.005)
    assert noised(torch.ones(2, 2, dtype=torch.bfloat16), 9, generator=generator()).dtype == (
        torch.bfloat16
    )
    whole = torch.rand(3, 4)
    assert torch.equal(noised(whole, 0, generator=generator()), whole)


def test_only_pixels_are_noised() -> None:
    given = {PIXELS: torch.zeros(4, 6), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    found = with_noise(given, 500, generator=generator())
    assert torch.equal(found["image_grid_thw"], given["image_grid_thw"])
    assert bool((found[PIXELS] != 0).all()) and bool((given[PIXELS] == 0).all())
