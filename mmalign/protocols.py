"""The seams of mmalign: every contract between its parts, and nothing else.

The modality of a model lives behind `Adapter`. No other part of the core may know it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmalign.types import Additive, Batch, Loss, Output, Prompt, Scores, Trajectory

Likelihood = Literal["exact", "bound"]
Want = frozenset[str]
"""Subset of `ON_REQUEST`, and "features"."""
AGAINST: Want = frozenset({"kl", "kl_forward", "prediction_distance"})
"""What compares the policy's network with the reference's."""
ON_REQUEST: Want = AGAINST | {"entropy", "log_collision", "top_k_mass", "top_k_entropy"}
"""The fields of `Scores` that an adapter computes where an objective's ``needs`` name them."""


@runtime_checkable
class Adapter(Protocol):
    """A modality: how recorded data becomes a trajectory, how a model samples one and scores one.

    Chance enters through ``generators`` alone, one per prompt, so that a row's draws depend on
    neither its neighbours in the batch nor the number of processes.

    Attributes:
        likelihood: Whether log-probs are exact or a bound.
        feature_size: F, the width of `Scores.features`.
    """

    likelihood: Likelihood
    feature_size: int

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded outputs as a trajectory: row order is prompt by prompt, output by output.

        All noise a bound needs is drawn here, once, and shared by the rows of a prompt.

        Raises:
            mmalign.blame.Refused: A prompt or an output does not fit the model; sources say where
                in the data it stands.
        """
        ...

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` decoded trajectories of each prompt, rows of a prompt adjacent.

        Raises:
            mmalign.blame.Refused: A prompt does not fit the model; sources say where it came from.
        """
        ...

    def scores(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        *,
        want: Want = frozenset(),
        against: nn.Module | None = None,
    ) -> Scores:
        """Log-probs of what was done: differentiable, deterministic.

        Args:
            model: The network that decides (bare, never a distributed wrapper).
            trajectory: B rows.
            want: Further quantities to return.
            against: The reference network, where something of `AGAINST` is wanted.
        """
        ...

    def prompt_lengths(self, trajectory: Trajectory) -> Tensor:
        """``[P]`` int64: how many positions the network reads of each prompt before it decides.

        Tokens, those of pictures included; 0 where a prompt conditions every step without taking a
        position of its own (denoisers).
        """
        ...

    def describe(self) -> str:
        """Every setting that scores depend on, weights apart: part of recorded scores' address."""
        ...

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write what transformers / peft / diffusers load without mmalign."""
        ...


@runtime_checkable
class Contrasting(Protocol):
    """An adapter whose steps are symbols: two networks' distributions can be set off."""

    def contrast(
        self, model: nn.Module, trajectory: Trajectory, *, against: nn.Module, strength: float
    ) -> Tensor:
        """``[B, T]`` float32 log-probs of the steps, 0 where masked, without gradient.

        They are those of ``softmax((1 + strength) z - strength z_against)`` over the symbols.
        """
        ...


@runtime_checkable
class Reference(Protocol):
    """A distribution the policy is held to: fixed, or following the policy (`Following`)."""

    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 log-probs, without gradient."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the reference's outputs may change."""
        ...


@runtime_checkable
class Following(Protocol):
    """What follows the policy's weights through a run: part of the run's state.

    A reference that moves is a `Reference` and this.
    """

    def after_update(self, step: int) -> None:
        """Take in the policy as it is after update ``step`` (from 1), made or skipped."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything that `after_update` changes, by name; the run's own, not to be written to."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        ...


@runtime_checkable
class RewardModel(Protocol):
    """A judge of outputs. Failing is raising: never a 0."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` or ``[B, K]`` float32, higher is better; one prompt per output."""
        ...


@runtime_checkable
class Diversity(Protocol):
    """How far apart the samples of one prompt are."""

    def __call__(self, outputs: Sequence[Output]) -> Tensor:
        """``[N, N]`` distances of N outputs: symmetric, not negative, 0 on the diagonal."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What training minimises: a frozen dataclass of hyperparameters with two functions.

    Attributes:
        additive_over: How finely the loss may be divided: whole groups, the steps of whole groups,
            or single steps.
        needs: Subset of {"reference", "behaviour", "coupled", "values", "pairs", "exact", "bound",
            "step_weights"} and of `ON_REQUEST`:
            what must be supplied for the loss to be defined. "coupled" beside "behaviour" asks for
            log-probs under the policy even where a batch serves one update: credit takes statistics
            of the whole global batch from them.
    """

    @property
    def additive_over(self) -> Additive:
        """How finely the loss may be divided."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What must be supplied."""
        ...

    def credit(self, batch: Batch) -> Batch:
        """Who is to be praised for what: advantages, pairs, weights, denominator. No gradient."""
        ...

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """The summed loss of a piece of a credited batch, with gradient."""
        ...


@runtime_checkable
class Composed(Protocol):
    """An objective made of others: a loss that is weighed, or several that are added up."""

    @property
    def inner(self) -> tuple[Objective, ...]:
        """What it is made of."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """An objective that learns something of its own from batch to batch.

    It stays a frozen set of hyperparameters: what it learned is handed to it and handed back, and
    the trainer keeps it with the run's position, so that a resumed run has it.
    """

    def remember(
        self, batch: Batch, memory: Mapping[str, float]
    ) -> tuple[Batch, Mapping[str, float]]:
        """The credited batch, marked with what was known before it, and what is known after it.

        Args:
            batch: Credited.
            memory: Numbers by name; empty at the start of a run. The same on every process.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Where batches come from: recorded preferences, rollouts, or a mixture."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable position, such that a restored source yields the same next batch."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position."""
        ...


@runtime_checkable
class ReadsReference(Protocol):
    """A source that uses the run's reference too: to sample from it, say."""

    def read(self, reference: Reference | None) -> None:
        """Take the run's reference, before the first batch.

        Raises:
            ValueError: The source cannot do without one, or not with this one.
        """
        ...


@runtime_checkable
class Selector(Protocol):
    """What is kept of the sampled groups, and how it is paired."""

    def __call__(self, batch: Batch) -> Batch:
        """The rows worth keeping, with pairs where it pairs them."""
        ...


@runtime_checkable
class Critic(Protocol):
    """State values for objectives that need them."""

    def values(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` value of the state before each step."""
        ...
