"""References that follow the policy at a distance.

After an update the reference becomes ``(1 - share) reference + share policy``: a small share after
each update is a moving average, a large one now and then a step. What is averaged is what the
network computes with: weights, or what the LoRA adds to them (`mmalign.references.average`). It is
kept in float32, since in bfloat16 a small share of a small difference would be rounded away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mmalign import lora
from mmalign.policy import Policy
from mmalign.protocols import Adapter
from mmalign.references.average import shifted
from mmalign.references.network import Frozen, NetworkReference, refuse_trained_base


class Pace(Protocol):
    """How fast a reference follows."""

    def share(self, step: int) -> float:
        """The policy's share in the reference after update ``step``; 0 where it stays."""
        ...


class Followed(Protocol):
    """What of the policy is followed, and the network that is written to."""

    average: dict[str, Tensor]
    """What the reference is made of, float32, by name."""

    def mix(self, share: float) -> None:
        """Move the average towards the policy."""
        ...

    def write(self) -> None:
        """Let the reference's network compute with the average."""
        ...


class MovingReference(NetworkReference):
    """A reference whose network follows the policy's; it starts where the policy starts.

    Scores of a batch are taken once, when it is drawn: several updates on one batch see the same.

    Args:
        adapter: Scores trajectories.
        network: The reference's own network.
        followed: What is mixed in and how.
        pace: When, and how much.
    """

    def __init__(
        self, *, adapter: Adapter, network: nn.Module, followed: Followed, pace: Pace
    ) -> None:
        super().__init__(
            adapter=adapter, network=network, tensors=lambda _: True, starts_at_policy=True
        )
        self.followed = followed
        self.pace = pace
        self.moves = 0

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Follow the policy as it is after update ``step``."""
        share = self.pace.share(step)
        if share > 0:
            self.followed.mix(share)
            self.followed.write()
            self.moves += 1

    def tensors(self) -> Mapping[str, Tensor]:
        """The average."""
        return self.followed.average

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        assert tensors.keys() == self.followed.average.keys(), "another reference's tensors"
        for name, value in self.followed.average.items():
            value.copy_(tensors[name])
        self.followed.write()


class Weights:
    """Follows the trained parameters, in a network that has copies of them."""

    def __init__(self, policy: Policy, network: nn.Module) -> None:
        copies = dict(network.named_parameters())
        trained = {k: p for k, p in policy.model.named_parameters() if p.requires_grad}
        self.pairs = {name: (p, copies[name]) for name, p in trained.items()}
        # In float32 the network's copy is the average itself.
        self.average = {name: copy.data.float() for name, (_, copy) in self.pairs.items()}

    def mix(self, share: float) -> None:
        """``average += share (policy - average)``."""
        for name, (now, _) in self.pairs.items():
            self.average[name].lerp_(now.detach().float(), share)

    def write(self) -> None:
        """Round to the network's precision, where it has another."""
        for name, (_, copy) in self.pairs.items():
            if copy.data_ptr() != self.average[name].data_ptr():
                copy.copy_(self.average[name])


class Products:
    """Follows what the LoRA adds to each layer, as dense matrices beside the shared base."""

    def __init__(self, policy: Policy) -> None:
        self.model, self.name = policy.model, lora.merge_name(policy.model)
        now = lora.factors(self.model, self.name)
        self.average = {key: up @ down for key, (up, down) in now.items()}
        self.network = shifted(self.model, {k: (value, None) for k, value in self.average.items()})

    def mix(self, share: float) -> None:
        """``average = (1 - share) average + share s B A``."""
        for key, (up, down) in lora.factors(self.model, self.name).items():
            self.average[key].addmm_(up, down, beta=1 - share, alpha=share)

    def write(self) -> None:
        """Nothing: the network computes with the average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EMA:
    """The moving average of the policy: ``reference = decay reference + (1 - decay) policy``.

    Attributes:
        decay: Per update; the reference is about ``1 / (1 - decay)`` updates behind.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"reference ema: decay={self.decay} must be in [0, 1)")

    def share(self, step: int) -> float:
        """The same after every update."""
        return 1 - self.decay

    def build(self, policy: Policy) -> MovingReference:
        """Start at the policy as it is now.

        Raises:
            ValueError: The LoRA cannot be averaged.
        """
        return _following(policy, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """TR-DPO's reference: every so many updates a mixture with the policy, or a copy of it.

    ``reference = alpha policy + (1 - alpha) reference``; ``alpha=1`` is the paper's hard update.

    Attributes:
        alpha: The policy's share. 0.6 is TRL's default, and the soft update's value.
        every: Updates between two. 512 is TRL's default, and the hard update's value.

    References:
        TR-DPO, 2404.09656.
    """

    alpha: float = 0.6
    every: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1 or self.every < 1:
            raise ValueError(
                f"reference sync: alpha={self.alpha} must be in (0, 1], every={self.every} at "
                "least 1"
            )

    def share(self, step: int) -> float:
        """Alpha after every ``every``-th update."""
        return self.alpha if step % self.every == 0 else 0.0

    def build(self, policy: Policy) -> MovingReference:
        """Start at the policy as it is now.

        Raises:
            ValueError: The LoRA cannot be averaged.
        """
        return _following(policy, self)


def _following(policy: Policy, pace: Pace) -> MovingReference:
    if lora.names(policy.model):
        refuse_trained_base(policy.model)
        products = Products(policy)
        return MovingReference(
            adapter=policy.adapter, network=products.network, followed=products, pace=pace
        )
    network = Frozen().build(policy).network
    return MovingReference(
        adapter=policy.adapter, network=network, followed=Weights(policy, network), pace=pace
    )
