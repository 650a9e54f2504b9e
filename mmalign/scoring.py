"""What is scored before an update: reference, behaviour and values of a batch, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.pieces import Bounds
from mmalign.policy import Policy
from mmalign.protocols import Reference
from mmalign.run import Run
from mmalign.types import Batch, Scores, Trajectory


class Scoring:
    """Cuts batches into pieces, and fills in the scores that an objective needs of them.

    Args:
        run: The settings: the objective's needs and how large a piece may be.
        policy: What is trained.
        reference: What it is held to, or None.
        autocast: The precision of the run.
    """

    def __init__(
        self,
        *,
        run: Run,
        policy: Policy,
        reference: Reference | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.training = run.training
        self.objective = run.objective
        self.policy = policy
        self.reference = reference
        self.autocast = autocast

    def scored(self, batch: Batch) -> Batch:
        """The batch with the scores that the objective needs and the batch lacks."""
        needs, once = self.objective.needs, self.training.updates_per_batch == 1
        if "reference" in needs and batch.reference is None:
            assert self.reference is not None
            batch = replace(batch, reference=self._reference_scores(batch))
        recorded = "behaviour" in needs and ("coupled" in needs or not once)
        if recorded and batch.behaviour is None:
            batch = replace(batch, behaviour=batch.trajectory.log_probs)
        if "values" in needs or (recorded and batch.behaviour is None):
            own = self.own(batch)
            old = own.log_probs if batch.behaviour is None else batch.behaviour
            batch = replace(batch, behaviour=old, values=own.values)
        return batch

    def own(self, batch: Batch) -> Scores:
        """The policy's scores before any update on this batch, through the bare network."""
        scorer = self.policy.scorer
        return Scores(**self._piecewise(batch, lambda rows: scorer(rows, frozenset(), None)))

    def pieces(self, batch: Batch) -> list[Batch]:
        """What of a credited batch goes through the network at a time."""
        return list(
            batch.microbatches(
                rows=self.training.rows_per_microbatch,
                steps=self.training.steps_per_microbatch,
                additive_over=self.objective.additive_over,
                tokens=self.training.tokens_per_microbatch,
                prompt_lengths=self.prompt_lengths(batch),
            )
        )

    def prompt_lengths(self, batch: Batch) -> Tensor:
        """``[P]`` positions of each prompt."""
        return self.policy.adapter.prompt_lengths(batch.trajectory)

    def _reference_scores(self, batch: Batch) -> Tensor:
        assert self.reference is not None
        scores = self.reference.scores
        return self._piecewise(batch, lambda rows: {"log_probs": scores(rows)})["log_probs"]

    def _piecewise(
        self, batch: Batch, scores: Callable[[Trajectory], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``scores`` says of every row, computed in pieces like those of an update."""
        pieces = self._cut(batch)
        with self.autocast():
            parts = [scores(batch.trajectory.rows(index)) for index in pieces]
        order = torch.cat(pieces).argsort()
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def _cut(self, batch: Batch) -> list[Tensor]:
        training = self.training
        return batch.cut(
            within=Bounds(rows=training.rows_per_microbatch, tokens=training.tokens_per_microbatch),
            additive_over=self.objective.additive_over,
            prompt_lengths=self.prompt_lengths(batch),
        )
