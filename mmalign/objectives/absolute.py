"""Objectives in which each side's own reward counts, not the margin alone."""

from __future__ import annotations

from dataclasses import dataclass

from mmalign import functional
from mmalign.objectives.pair import PairObjective


@dataclass(frozen=True, slots=True, kw_only=True)
class NCA(PairObjective):
    """Noise-contrastive alignment: the chosen side's reward is kept up, not just above.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2402.05369.
    """

    function = staticmethod(functional.nca_pair)
    beta: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class APOZero(PairObjective):
    """Anchored preference optimisation where chosen answers are better than the model's.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2408.06266.
    """

    function = staticmethod(functional.apo_zero)
    beta: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class APODown(PairObjective):
    """Anchored preference optimisation where chosen answers are worse than the model's.

    Both sides are pushed down, the rejected one more.

    Attributes:
        beta: Per nat of log-ratio, summed over steps.

    References:
        2408.06266.
    """

    function = staticmethod(functional.apo_down)
    beta: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class SPPO(PairObjective):
    """Self-play preference optimisation with win rates 1 and 0: both log-ratios to a target.

    Attributes:
        beta: The targets are plus and minus ``1 / (2 beta)`` nats.

    References:
        2405.00675.
    """

    function = staticmethod(functional.sppo_hard)
    beta: float = 0.001
