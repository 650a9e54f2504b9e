"""Objectives without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmalign import functional
from mmalign.functional.logistic import require_smoothing
from mmalign.objectives.pair import PairObjective, Reduction
from mmalign.protocols import Likelihood


@dataclass(frozen=True, slots=True, kw_only=True)
class SimPO(PairObjective):
    """The chosen side's mean log-prob is to exceed the rejected one's by a margin.

    Attributes:
        beta: Per nat a step.
        gamma: The margin, subtracted after the multiplication by beta. Some code asks for the ratio
            ``gamma / beta`` under this name: here a ratio of 0.55 at beta 2.5 is 1.375.
        label_smoothing: Probability that a label is wrong, 0 to 0.5.

    References:
        2405.14734.
    """

    function = staticmethod(functional.simpo)
    reads_reference: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "mean"
    beta: float = 2.5
    gamma: float = 1.375
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        PairObjective.__post_init__(self)
        require_smoothing(self.label_smoothing, "simpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaPO(PairObjective):
    """SimPO with a bent reward, which changes how fast both sides' likelihoods fall.

    Attributes:
        beta: Per unit of bent mean log-prob.
        gamma: The margin, as SimPO's.
        alpha: The bend; 0 is SimPO.

    References:
        2501.03884.
    """

    function = staticmethod(functional.alphapo)
    reads_reference: ClassVar[bool] = False
    reduction: ClassVar[Reduction] = "mean"
    beta: float = 2.5
    gamma: float = 0.1
    alpha: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class CPO(PairObjective):
    """DPO against a uniform reference, plus the likelihood of the chosen side.

    Attributes:
        beta: Per nat, summed over steps.
        nll_coefficient: Weight of the chosen side's cross-entropy, a mean over its steps.

    References:
        2401.08417.
    """

    function = staticmethod(functional.cpo)
    reads_reference: ClassVar[bool] = False
    beta: float = 0.1
    nll_coefficient: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ORPO(PairObjective):
    """Imitation of the chosen side with a penalty on the odds of the rejected one.

    The odds are of the geometric-mean probability of a step, so log-probs must be of
    probabilities: a bound is refused.

    Attributes:
        beta: The paper's lambda, weight of the odds-ratio term.

    References:
        2403.07691.
    """

    function = staticmethod(functional.orpo)
    reads_reference: ClassVar[bool] = False
    likelihood: ClassVar[Likelihood | None] = "exact"
    beta: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MaPO(PairObjective):
    """A denoiser's own error on the chosen picture, and the odds of both pictures' errors.

    For log-probs that are minus one half of a mean squared error.

    Attributes:
        beta: Weight of the odds-ratio term.
        snr: Scales the error within the odds.
        scale: Of the difference of odds; the released code's number of training timesteps.

    References:
        2406.06424.
    """

    function = staticmethod(functional.mapo)
    reads_reference: ClassVar[bool] = False
    likelihood: ClassVar[Likelihood | None] = "bound"
    beta: float = 0.1
    snr: float = 0.5
    scale: float = 1000.0
