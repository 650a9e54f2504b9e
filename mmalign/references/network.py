"""References that are fixed networks: a frozen copy, LoRA off, another LoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmalign import fingerprints, lora
from mmalign.policy import Policy
from mmalign.protocols import Adapter
from mmalign.run import ReferenceSpec
from mmalign.types import Trajectory

START_NAME = "start"


class NetworkReference:
    """A reference that is a network, in the state it scores in.

    Args:
        adapter: Scores trajectories.
        network: The network; nothing switches it to and fro, so it can be asked at any time.
        tensors: Which of the network's tensors its scores depend on, for the fingerprint.
        starts_at_policy: True where the untrained policy gives the same scores.
    """

    def __init__(
        self,
        *,
        adapter: Adapter,
        network: nn.Module,
        tensors: Callable[[str], bool],
        starts_at_policy: bool,
    ) -> None:
        self.adapter = adapter
        self.network = network
        self.depends_on = tensors
        self.starts_at_policy = starts_at_policy

    @torch.no_grad()
    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 log-probs."""
        return self.adapter.scores(self.network, trajectory).log_probs

    def parts(self) -> dict[str, str]:
        """What the scores depend on, rows apart, by name: see `mmalign.fingerprints`."""
        tensors = [(k, v) for k, v in self.network.state_dict().items() if self.depends_on(k)]
        loras = {
            name: lora.scaling(self.network, name)
            for name in lora.names(self.network)
            if self.depends_on(f".lora_A.{name}.")
        }
        return {
            "network": type(self.network).__name__,
            "weights": fingerprints.weights_key(tensors),
            "dtype": fingerprints.dtypes_of(tensors),
            "lora": ", ".join(loras) or "none",
            "lora scaling": fingerprints.content_key(loras),
            "adapter": self.adapter.describe(),
            "code": fingerprints.code_versions(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of `parts`."""
        return fingerprints.fingerprint(self.parts())


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A frozen copy of the policy as it starts.

    What is trained is in memory twice; what is frozen already (a vision tower) serves both.
    """

    def build(self, policy: Policy) -> NetworkReference:
        """Copy the network now."""
        shared = {id(p): p for p in policy.model.parameters() if not p.requires_grad}
        model = copy.deepcopy(policy.model, shared).eval().requires_grad_(False)
        return NetworkReference(
            adapter=policy.adapter, network=model, tensors=lambda _: True, starts_at_policy=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAOff:
    """The policy's own network with its LoRA switched off."""

    def build(self, policy: Policy) -> NetworkReference:
        """Share the policy's weights.

        Raises:
            ValueError: The policy has no LoRA, or parameters outside the LoRA are trained.
        """
        if not lora.names(policy.model):
            raise ValueError("reference lora_off needs a policy with a LoRA; use `type: frozen`")
        refuse_trained_base(policy.model)
        network = twin(policy.model)
        lora.disable(network)
        return NetworkReference(
            adapter=policy.adapter,
            network=network,
            tensors=lambda name: "lora_" not in name,
            starts_at_policy=lora.is_fresh(network),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedLoRA:
    """The policy's network with another, named LoRA in use (an SFT or OPA stage, say).

    Attributes:
        path: Folder of the LoRA in peft's layout.
        name: The name it is loaded under.
    """

    path: str
    name: str = "reference"

    def build(self, policy: Policy) -> NetworkReference:
        """Load the LoRA beside the policy's.

        Raises:
            ValueError: The folder holds no LoRA, the name is taken, or the base is trained.
        """
        name, carried = self.name, lora.names(policy.model)
        if name in carried:
            raise ValueError(f"the policy's LoRA is called {name!r} too; rename one of them")
        if not carried:
            raise ValueError("reference named_lora needs a policy that trains a LoRA")
        refuse_trained_base(policy.model)
        network, start = twin(policy.model), lora.merge_name(policy.model)
        lora.load(network, self.path, name=name, trainable=False)
        lora.activate(network, name)
        return NetworkReference(
            adapter=policy.adapter,
            network=network,
            tensors=lambda key: "lora_" not in key or lora.belongs(key, name),
            starts_at_policy=lora.equal(network, start, name),
        )


def twin(model: nn.Module) -> nn.Module:
    """A second network on the very same weights, whose LoRAs can be in another state.

    Only the module objects are copied. Adapters may so call any part of it: there is no state to
    switch around a call, and none that a call could miss.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def default(policy: Policy, *, start: str | None = None) -> ReferenceSpec:
    """The reference of a policy whose config names none.

    Args:
        policy: As loaded.
        start: The folder of the LoRA the policy starts from, or None. The reference is then that
            LoRA: silently falling back to the base model would change what is being optimised.
    """
    if start is not None:
        return NamedLoRA(path=start, name=START_NAME)
    return LoRAOff() if lora.names(policy.model) else Frozen()


def refuse_trained_base(model: nn.Module) -> None:
    """Stop where the network without its LoRA would move.

    Raises:
        ValueError: Parameters outside the LoRA are trained.
    """
    moved = [k for k, p in model.named_parameters() if p.requires_grad and "lora_" not in k]
    if moved:
        raise ValueError(
            f"{len(moved)} parameters outside the LoRA are trained ({moved[0]}, ...), so the "
            "network without its LoRA is not a fixed reference; use `type: frozen`"
        )
