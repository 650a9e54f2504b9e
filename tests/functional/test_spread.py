"""The best of n samples and the distance of samples, by hand and over every possible draw."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mmalign.functional import best_of, mean_pairwise


def test_best_of_by_hand() -> None:
    """4, 1, 2: their mean is 7/3; the pairs (1,2), (1,4), (2,4) have maxima 2, 4, 4; of 3 it is 4.

    Rows are apart, and the order of the samples is nothing.
    """
    found = best_of(torch.tensor([[4.0, 1.0, 2.0], [2.0, 4.0, 1.0], [5.0, 5.0, 5.0]]))
    expected = torch.tensor([7 / 3, 10 / 3, 4.0], dtype=torch.float64)
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], torch.full((3,), 5.0, dtype=torch.float64))


def test_best_of_is_pass_at_k() -> None:
    """Of scores 0 and 1, c right of N: 1 - C(N - c, n) / C(N, n). N = 5, c = 2: n = 2 is 0.7."""
    found = best_of(torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(
        found, torch.tensor([0.4, 0.7, 0.9, 1.0, 1.0], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_best_of_is_unbiased() -> None:
    """Over all draws of 4 samples that are 1 with probability 0.3, else 0, its mean is 1 - 0.7^n.

    An estimate that plugs the samples in with replacement, 1 - (1 - c/N)^n, would be too low.
    """
    total = torch.zeros(4, dtype=torch.float64)
    for draw in product((0.0, 1.0), repeat=4):
        chance = 0.3 ** sum(draw) * 0.7 ** (4 - sum(draw))
        total += chance * best_of(torch.tensor(draw))
    expected = torch.tensor([1 - 0.7**n for n in (1, 2, 3, 4)], dtype=torch.float64)
    torch.testing.assert_close(total, expected)


def test_best_of_many_samples() -> None:
    """Binomials of 1000 are larger than a float holds; their ratios are not.

    The largest of n of the numbers 1 to N has the mean n (N + 1) / (n + 1).
    """
    n = torch.arange(1.0, 1001.0, dtype=torch.float64)
    torch.testing.assert_close(best_of(n), n * 1001 / (n + 1), atol=0, rtol=1e-12)


def test_mean_pairwise_by_hand() -> None:
    """Distances 1, 2, 6 of three samples, each counted both ways: 18 / 6 = 3. The diagonal no."""
    distances = torch.tensor([[9.0, 1.0, 2.0], [1.0, 9.0, 6.0], [2.0, 6.0, 9.0]])
    assert float(mean_pairwise(distances)) == 3.0
    assert mean_pairwise(distances.expand(4, 3, 3)).tolist() == [3.0] * 4


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least one"):
        best_of(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise(torch.zeros(1, 1))
