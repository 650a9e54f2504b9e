"""Weights of levels: numbers by hand, and that all kinds of prediction weigh one error alike."""

from __future__ import annotations

import pytest
import torch

from mmalign.diffusion.weights import min_snr


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("epsilon", [1.0, 1.0, 5 / 9]),
        ("v_prediction", [0.2, 0.5, 0.5]),
        ("sample", [0.25, 1.0, 5.0]),
    ],
)
def test_by_hand(kind: str, expected: list[float]) -> None:
    """Alpha 0.2, 0.5, 0.9 are SNR 0.25, 1, 9; with gamma 5 the least are 0.25, 1, 5.

    For noise they are divided by SNR, for v by SNR + 1 = 1.25, 2, 10.
    """
    alpha = torch.tensor([0.2, 0.5, 0.9])
    found = min_snr(alpha, gamma=5.0, prediction_type=kind)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(expected)


def test_one_error_weighs_alike_however_it_is_predicted() -> None:
    """An error e of the clean latent is SNR e of the noise and (SNR + 1) e of v."""
    alpha = torch.linspace(0.01, 0.99, 50)
    snr = alpha / (1 - alpha)
    noise, v, clean = (
        min_snr(alpha, gamma=5.0, prediction_type=k) for k in ("epsilon", "v_prediction", "sample")
    )
    torch.testing.assert_close(noise * snr, clean)
    torch.testing.assert_close(v * (snr + 1), clean)


def test_both_ends_are_finite() -> None:
    """Pure noise (alpha 0) and no noise (alpha 1)."""
    ends = torch.tensor([0.0, 1.0])
    found = {k: min_snr(ends, gamma=5.0, prediction_type=k).tolist() for k in (
        "epsilon", "v_prediction", "sample",
    )}  # type: ignore[arg-type]  # fmt: skip
    assert found == {"epsilon": [1.0, 0.0], "v_prediction": [0.0, 0.0], "sample": [0.0, 5.0]}
