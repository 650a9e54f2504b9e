"""The diversity of samples, checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmalign.functional import mean_pairwise
from mmalign.protocols import Diversity
from mmalign.types import Output


def diversity(measure: Diversity, outputs: Sequence[Output]) -> float:
    """The mean distance of two different samples of one prompt.

    Args:
        measure: Says how far apart two outputs are.
        outputs: N samples, at least two.

    Returns:
        In units of the measure; 0 where all samples are the same to it.

    Raises:
        ValueError: The measure failed, or gave other than N x N finite numbers.
    """
    name = type(measure).__name__
    try:
        distances = measure(outputs)
    except Exception as error:
        raise ValueError(f"diversity {name} failed on {len(outputs)} outputs: {error}") from error
    if distances.shape != (len(outputs), len(outputs)):
        raise ValueError(
            f"diversity {name} returned {tuple(distances.shape)} distances for {len(outputs)} "
            "outputs; it must compare each with each"
        )
    if not bool(torch.isfinite(distances).all()):
        raise ValueError(f"diversity {name} returned a distance that is not finite")
    return float(mean_pairwise(distances.double()))
