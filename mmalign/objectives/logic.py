"""Any preference loss that can be said in formulas."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmalign.diagnostics.logic import STATEMENTS, Reduction, Statement
from mmalign.objectives import pairwise
from mmalign.types import Additive, Batch, Loss, Scores

DPO = STATEMENTS["dpo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logic:
    """A loss written as formulas: ``-log sigmoid(beta log rho)`` of each pair.

    ``rho`` is the probability that ``(proposition or ambiguous) and condition`` holds over that of
    ``(not proposition or ambiguous) and condition``, the atoms ``M(w)``, ``M(l)``, ``R(w)`` and
    ``R(l)`` being independent; `mmalign.diagnostics.formulas` has the grammar. The defaults are
    DPO. ``mmalign logic show`` prints what a formula comes to.

    Attributes:
        proposition: What is preferred, such as ``M(l) -> M(w)``.
        condition: Which cases count at all.
        ambiguous: Which cases count for both sides.
        beta: Per nat of ``log rho``.
        log_probs: Whether the probability of an output is that of all its steps ("sum") or the
            geometric mean of a step's ("mean"). A loss that reads ``1 - p`` of the policy needs the
            mean: the probability of a long output is so small that ``1 - p`` is 1.
        sft_weight: Adds this times the cross-entropy of the chosen side, nats, a mean over its
            steps; 0 for none.

    References:
        2412.17696.
    """

    proposition: str = DPO.proposition
    condition: str = DPO.condition
    ambiguous: str = DPO.ambiguous
    beta: float = 0.1
    log_probs: Reduction = "sum"
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta={self.beta} would not prefer the chosen side; use more than 0")
        if self.sft_weight < 0:
            raise ValueError(
                f"sft_weight={self.sft_weight} would make the chosen side unlikely; use 0 or more"
            )
        if self.log_probs not in ("sum", "mean"):
            raise ValueError(f"log_probs={self.log_probs!r} is unknown; use 'sum' or 'mean'")
        structure = self.statement.structure()
        if 0 not in structure.atoms and 1 not in structure.atoms:
            raise ValueError(
                "the formulas do not depend on the policy, so there is nothing to train"
            )
        if self.log_probs == "sum" and structure.reads_complements:
            raise ValueError(
                "the formulas read 1 - p of the policy, which is 1 for a sum over many steps; use "
                "log_probs='mean'"
            )

    @property
    def statement(self) -> Statement:
        """The three formulas."""
        return Statement(
            proposition=self.proposition, condition=self.condition, ambiguous=self.ambiguous
        )

    @property
    def additive_over(self) -> Additive:
        """The two sides of a pair stay together."""
        return "group"

    @property
    def needs(self) -> frozenset[str]:
        """Probabilities, and those of the reference where a formula names them."""
        reads = self.statement.structure().reads_reference
        return frozenset({"exact", "reference"} if reads else {"exact"})

    def credit(self, batch: Batch) -> Batch:
        """Pairs and their number (see `pairwise.credit`)."""
        return pairwise.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The formula, summed over pairs."""
        return pairwise.loss(scores, batch, formula=self.formula, beta=self.beta)

    def formula(
        self, s_w: Tensor, s_l: Tensor, ref_s_w: Tensor, ref_s_l: Tensor, n_w: Tensor, n_l: Tensor
    ) -> Tensor:
        """``[N]``; log 2 plus the likelihood term where ``rho`` is 1."""
        n_w, n_l = n_w.clamp(min=1), n_l.clamp(min=1)
        counts = (n_w, n_l, n_w, n_l)
        log_probs = [
            s if self.log_probs == "sum" else s / n
            for s, n in zip((s_w, s_l, ref_s_w, ref_s_l), counts, strict=True)
        ]
        compared = self.statement.structure().loss(log_probs, beta=self.beta)
        if self.sft_weight == 0:
            return compared
        return compared - self.sft_weight * s_w / n_w
