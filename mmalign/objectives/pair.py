"""What an objective of recorded or sampled pairs needs beside its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from torch import Tensor

from mmalign.objectives import pairwise
from mmalign.protocols import Likelihood
from mmalign.types import Additive, Batch, Loss, Scores

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairObjective:
    """An objective that is a formula of pairs; each below is a frozen dataclass of its settings.

    Attributes:
        function: The formula, of `mmalign.functional`, which takes the fields as arguments.
        reads_reference: Whether the formula has the reference's log-probs in it.
        reduction: Whether the formula compares sums of log-probs over steps or means, which says
            what size of beta makes sense: 0.01 to 1 for sums of nats, 1 to 10 for means.
        likelihood: "exact" where the formula takes a log-prob for the logarithm of a probability,
            "bound" where it takes it for minus one half of a mean squared error.
    """

    beta: float
    function: ClassVar[Callable[..., Tensor]]
    reads_reference: ClassVar[bool] = True
    reduction: ClassVar[Reduction] = "sum"
    likelihood: ClassVar[Likelihood | None] = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: Beta is not positive.
        """
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the chosen side; use more than 0")

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Log-probs under the reference, and which kind of log-probs."""
        reference = {"reference"} if self.reads_reference else set()
        return frozenset(reference | ({self.likelihood} if self.likelihood else set()))

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]`` losses: `function` under these settings, whose names are its arguments' names.

        The tensors are described in `mmalign.functional.logistic`.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return self.function(s_w, s_l, ref_s_w, ref_s_l, n_w, n_l, **settings)

    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number (see `pairwise.credit`)."""
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The formula, summed over pairs."""
        return pairwise.loss(scores, batch, formula=self.formula, beta=self.beta)
