"""Identity preference optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign import functional
from mmalign.functional.squared import Reduction
from mmalign.objectives import pairwise
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class IPO:
    """IPO: the log-ratios of a pair are driven to a margin of ``1 / (2 beta)``, no further.

    Attributes:
        beta: The paper's tau.
        reduction: "mean" over steps (the form the authors confirmed) or "sum" (as printed).

    References:
        2310.12036.
    """

    beta: float = 0.1
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} gives no target margin; use more than 0")

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference."""
        return frozenset({"reference"})

    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number (see `pairwise.credit`)."""
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Summed over pairs; ``1 / (4 beta^2)`` a pair at the reference."""
        return pairwise.loss(scores, batch, formula=self.formula, beta=self.beta)

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` losses (see `mmalign.functional.ipo`)."""
        six = (s_w, s_l, ref_s_w, ref_s_l, n_w, n_l)
        return functional.ipo(*six, beta=self.beta, reduction=self.reduction)
