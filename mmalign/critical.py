"""Pairs whose rejected side is weighed step by step, by the contrast of two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign import fingerprints, pairing
from mmalign.functional import critical_weights
from mmalign.policy import Policy
from mmalign.protocols import Contrasting, ReadsReference, Reference, Source
from mmalign.references import NamedLoRA, NetworkReference, RecordedReference
from mmalign.run import SourceSpec
from mmalign.types import Batch, Trajectory


class Contrast:
    """Log-probs of steps under ``softmax((1 + b) z_positive - b z_negative)``.

    It has a reference's two functions, so that what it says can be recorded as a reference's.
    """

    def __init__(
        self, *, positive: NetworkReference, negative: NetworkReference, strength: float
    ) -> None:
        assert isinstance(positive.adapter, Contrasting)
        self.adapter = positive.adapter
        self.positive, self.negative, self.strength = positive, negative, strength

    @torch.no_grad()
    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 nats; 0 where masked."""
        return self.adapter.contrast(
            self.positive.network,
            trajectory,
            against=self.negative.network,
            strength=self.strength,
        )

    def parts(self) -> dict[str, str]:
        """What the scores depend on, rows apart, by name."""
        named = {"positive": self.positive, "negative": self.negative}
        found = {f"{name} {k}": v for name, ref in named.items() for k, v in ref.parts().items()}
        return {**found, "strength": repr(self.strength)}

    def fingerprint(self) -> str:
        """SHA-256 of `parts`."""
        return fingerprints.fingerprint(self.parts())


class CriticalSource:
    """Batches of another source, the rejected sides' steps weighed."""

    def __init__(self, source: Source, contrast: Reference, policy: Policy) -> None:
        self.source, self.contrast, self.policy = source, contrast, policy

    def __iter__(self) -> Iterator[Batch]:
        return (self._weighed(batch) for batch in self.source)

    def read(self, reference: Reference | None) -> None:
        """Hand the run's reference on, where the other source wants it."""
        if isinstance(self.source, ReadsReference):
            self.source.read(reference)

    def state_dict(self) -> dict[str, Any]:
        """The other source's position."""
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position."""
        self.source.load_state_dict(state)

    @torch.no_grad()
    def _weighed(self, batch: Batch) -> Batch:
        if batch.pairs is None:
            batch = pairing.ordered_pairs(batch)
        assert batch.pairs is not None
        weights = batch.pair_weights().clone()
        if len(batch.pairs):
            rows, of_pair = torch.unique(batch.pairs[:, 1], return_inverse=True)
            with self.policy.autocast():
                log_scores = self.contrast.scores(batch.trajectory.rows(rows))
            share = critical_weights(log_scores).to(weights)[of_pair]
            weights[:, 1] *= torch.where(batch.trajectory.mask[batch.pairs[:, 1]], share, 0.0)
        kept = float(weights[:, 1].sum()), float(batch.weight[batch.pairs[:, 1]].sum())
        metrics = {**batch.metrics, "critical/weight": kept}
        return replace(batch, pair_weight=weights, metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Critical:
    """Pairs with critical-token weights, for `cdpo_critical`.

    A step of a rejected side weighs ``1 - s``, with ``s`` its probability under
    ``softmax((1 + b) z_positive - b z_negative)``: near 1 where a model of wrong outputs likes the
    step and a model of right outputs shuns it. Both models are LoRAs on the policy's base, trained
    by `sft` on the right and on the wrong outputs (``of: chosen`` and ``of: rejected`` of
    `demonstrations`).

    Attributes:
        of: Where the pairs come from.
        positive: Folder of the LoRA that was trained on right outputs, in peft's layout.
        negative: Folder of the one that was trained on wrong outputs.
        strength: The b.
        folder: Where the scores are kept, so that each pair is scored once; None to score it anew
            in each epoch.

    References:
        2411.19943; b is 1 in its released code.
    """

    of: SourceSpec
    positive: str
    negative: str
    strength: float = 1.0
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength={self.strength} would follow the model of wrong outputs")

    def build(self, policy: Policy, *, seed: int) -> CriticalSource:
        """The source at its beginning.

        Raises:
            ValueError: The policy's steps are no symbols, it trains no LoRA, or a folder has none.
        """
        if not isinstance(policy.adapter, Contrasting):
            raise ValueError(
                "a source of critical steps contrasts distributions over symbols, which this "
                f"policy ({type(policy.adapter).__name__}) has not; use a policy of text, of "
                "answers to pictures, or of image codes"
            )
        contrast = Contrast(
            positive=NamedLoRA(path=self.positive, name="positive").build(policy),
            negative=NamedLoRA(path=self.negative, name="negative").build(policy),
            strength=self.strength,
        )
        scores: Reference = contrast
        if self.folder is not None:
            scores = RecordedReference(
                inner=contrast, folder=Path(self.folder), parts=contrast.parts()
            )
        return CriticalSource(self.of.build(policy, seed=seed), scores, policy)
