"""One number for each pair: how much training on it is expected to be worth.

    I_i = z(M_i) + a z(Q_i) + g z(log(|e_i - e_i(k)| + 1e-8))

M is the margin of a proxy reward, Q the quality of the prompt, and the last term the prompt's share
of the entropy of all prompts; z standardises over the pool. That these three are added up, and the
pairs of largest sum kept, is from abstract and project page of arXiv 2410.10166. Standardising,
clipping and the weights are ours: the paper's own were not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SAME = 1e-6
"""Values of a pool that differ by no more than this share are equal: the rounding of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How components are put on one scale and added; all defaults are ours.

    Attributes:
        quality: Weight a of the prompt's quality; that of the margin is 1.
        diversity: Weight g of the prompt's distance to others.
        clip: Quantiles of the pool to which each component is clipped first, so that a few extreme
            values do not set the scale.
    """

    quality: float = 0.5
    diversity: float = 0.5
    clip: tuple[float, float] = (0.01, 0.99)

    def __post_init__(self) -> None:
        for name in ("quality", "diversity"):
            if getattr(self, name) < 0:
                raise ValueError(f"weights.{name}={getattr(self, name)} must not be negative")
        low, high = self.clip
        if not 0 <= low < high <= 1:
            raise ValueError(f"weights.clip={self.clip} must be two rising quantiles in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Of one component: where it is clipped, and what is subtracted and divided by.

    Attributes:
        low: Smallest value told apart.
        high: Largest one.
        mean: Of the clipped pool.
        deviation: Of the clipped pool (population); 0 where all are equal.
    """

    low: float
    high: float
    mean: float
    deviation: float

    def __call__(self, values: Floats) -> Floats:
        """Standardised values; 0 throughout where the pool's are all equal."""
        if self.deviation == 0:
            return np.zeros_like(values)
        return (np.clip(values, self.low, self.high) - self.mean) / self.deviation


def scale_of(pool: Floats, clip: tuple[float, float]) -> Scale:
    """The scale of a component over the pool.

    ``[1, 2, 3]`` without clipping has mean 2 and deviation ``sqrt(2/3)``: -1.2247, 0, 1.2247.
    """
    assert len(pool)
    low, high = (float(value) for value in np.quantile(pool, clip))
    clipped = np.clip(pool, low, high)
    # What differs by rounding alone must not be blown up to a component like the others.
    equal = high - low <= SAME * max(abs(low), abs(high))
    deviation = 0.0 if equal else float(clipped.std())
    return Scale(low=low, high=high, mean=float(clipped.mean()), deviation=deviation)
