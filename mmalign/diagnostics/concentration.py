"""How the policy's next-step probability is spread: signs of over-optimisation.

The entropy of the k likeliest symbols turning down (seen with DPO and IPO), or their mass falling
(seen with the hinge loss), are signs to stop by that need no judge. Both are taken at every step of
outputs that the policy drew, and averaged over the steps of an output, then over outputs.

References:
    2410.11677.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.functional.stable import masked_mean


def top_k_entropy_bits(mass: Tensor, entropy: Tensor, *, renormalised: bool = False) -> Tensor:
    """``-sum p_i log2 p_i`` over the k likeliest symbols, in bits.

    With ``q = p / mass`` the sum is ``mass (H(q) - log mass)``, so it follows from what
    `mmalign.types.Scores` holds.

    Args:
        mass: Any shape, ``sum p_i`` (`Scores.top_k_mass`).
        entropy: Same shape, ``H(q)`` in nats (`Scores.top_k_entropy`).
        renormalised: Give ``H(q)`` instead; the paper does not say which of the two is meant.

    Returns:
        Same shape, bits; ``(k / V) log2 V`` for V equal symbols, 0 where one is certain.
    """
    if renormalised:
        return entropy / math.log(2)
    logarithm = mass.clamp(min=torch.finfo(mass.dtype).tiny).log()
    return mass * (entropy - logarithm) / math.log(2)


def per_output(values: Tensor, mask: Tensor) -> Tensor:
    """``[B, T]`` values of steps to ``[B]`` means over an output's steps."""
    return masked_mean(values, mask)


def turned_down(values: Sequence[float], *, patience: int = 2, drop: float = 0.02) -> int | None:
    """The number of the highest value where a curve has turned down since; None where it has not.

    Args:
        values: An indicator at successive evaluations, the first before training.
        patience: How many values after the highest one must all lie below it.
        drop: By what share of the highest value the last one must lie below it.

    Returns:
        Its position in ``values``: the evaluation to go back to.

    Raises:
        ValueError: Patience is below 1, or drop not between 0 and 1.
    """
    if patience < 1 or not 0 <= drop < 1:
        raise ValueError(f"patience={patience} must be at least 1, drop={drop} in [0, 1)")
    if not values:
        return None
    top = max(values)
    # The last of equal maxima: a plateau has not turned.
    peak = len(values) - 1 - list(reversed(values)).index(top)
    fallen = len(values) - 1 - peak >= patience and values[-1] <= top - drop * abs(top)
    return peak if fallen and values[-1] < top else None


def overoptimised(
    steps: Sequence[int],
    mass: Sequence[float],
    entropy: Sequence[float],
    *,
    patience: int = 2,
    drop: float = 0.02,
) -> str | None:
    """What to tell the user of a run whose indicators have turned down; None where they have not.

    Args:
        steps: Optimizer updates at each evaluation.
        mass: Mean top-k mass of sampled outputs at each.
        entropy: Mean top-k entropy of them at each, any unit.
        patience: See `turned_down`.
        drop: See `turned_down`.

    Returns:
        One sentence.
    """
    assert len(steps) == len(mass) == len(entropy)
    found = []
    for name, values in (("mass", mass), ("entropy", entropy)):
        peak = turned_down(values, patience=patience, drop=drop)
        if peak is not None:
            found.append(
                f"top-k {name} has fallen from {values[peak]:.4g} at step {steps[peak]} to "
                f"{values[-1]:.4g}"
            )
    if not found:
        return None
    return (
        f"{' and '.join(found)}: a sign of over-optimisation; compare judged samples of that step "
        "with the last ones"
    )
