"""Implicit rewards of other policies, as further rewards of a batch: the margins of MODPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.functional import masked_sum
from mmalign.policy import Policy
from mmalign.protocols import ReadsReference, Reference, Source
from mmalign.run import ReferenceSpec, SourceSpec
from mmalign.types import Batch, Trajectory


class ImplicitRewardSource:
    """The batches of another source, with the implicit rewards of further policies.

    Args:
        spec: The settings.
        source: The other source.
        others: The further policies, frozen.
        policy: For the precision of the run.
    """

    def __init__(
        self,
        spec: ImplicitRewards,
        *,
        source: Source,
        others: list[Reference],
        policy: Policy,
    ) -> None:
        self.spec, self.source, self.others, self.policy = spec, source, others, policy
        self.reference: Reference | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.source:
            yield self._rewarded(batch)

    def read(self, reference: Reference | None) -> None:
        """Take the run's reference, which implicit rewards are relative to.

        Raises:
            ValueError: There is none.
        """
        if reference is None:
            raise ValueError(
                "implicit rewards are relative to a reference, and the objective reads none; use "
                "one that does, such as modpo"
            )
        self.reference = reference
        if isinstance(self.source, ReadsReference):
            self.source.read(reference)

    @torch.no_grad()
    def _rewarded(self, batch: Batch) -> Batch:
        """The batch with one more reward for each policy, and the reference's log-probs."""
        assert self.reference is not None, "the reference was never handed over"
        batch = batch.to(self.policy.device)
        reference = self._scores(self.reference, batch.trajectory)
        columns = [batch.reward if batch.reward.dim() == 2 else batch.reward.unsqueeze(1)]
        for other in self.others:
            ratio = (self._scores(other, batch.trajectory) - reference) * batch.weight
            total = self.spec.beta * masked_sum(ratio, batch.trajectory.mask)
            columns.append(total.unsqueeze(1).to(batch.reward))
        return replace(batch, reward=torch.cat(columns, 1), reference=reference)

    def _scores(self, network: Reference, trajectory: Trajectory) -> Tensor:
        size = self.spec.rows_per_forward
        with self.policy.autocast():
            parts = [
                network.scores(trajectory.rows(rows))
                for rows in torch.arange(len(trajectory)).split(size)
            ]
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """The other source's position."""
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved position."""
        self.source.load_state_dict(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitRewards:
    """Another source's batches, judged by policies that were aligned to other objectives.

    A policy that DPO has aligned to an objective is a judge of it: its reward of an output is
    ``beta (log p - log p_ref)``. Columns are added to ``Batch.reward`` in the order of
    ``policies``, behind those of the source, and never have a gradient.

    Attributes:
        source: The other source: pairs of the objective that is trained.
        policies: The aligned policies, commonly `named_lora` with the LoRA of an earlier run. What
            they are relative to is the run's reference, so they must have been trained from it.
        beta: That of their runs.
        rows_per_forward: Rows scored at a time.
    """

    source: SourceSpec
    policies: tuple[ReferenceSpec, ...]
    beta: float = 0.1
    rows_per_forward: int = 32

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies is empty; name at least one aligned policy")
        if self.beta <= 0 or self.rows_per_forward < 1:
            raise ValueError(
                f"beta={self.beta} must be positive, rows_per_forward={self.rows_per_forward} at "
                "least 1"
            )

    def build(self, policy: Policy, *, seed: int) -> ImplicitRewardSource:
        """The source at its beginning, with the other policies loaded."""
        source = self.source.build(policy, seed=seed)
        others: list[Reference] = [spec.build(policy) for spec in self.policies]
        return ImplicitRewardSource(self, source=source, others=others, policy=policy)
