"""What a policy is held to. Each reference is a small settings object that builds the real one.

A reference never sees a gradient and never moves. Where it shares the policy's network (LoRA off, a
named LoRA) it costs no second set of weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mmalign import fingerprints, lora
from mmalign.policy import Policy
from mmalign.protocols import Adapter, Reference
from mmalign.run import ReferenceSpec
from mmalign.store import TensorStore
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
        self.tensors = tensors
        self.starts_at_policy = starts_at_policy

    @torch.no_grad()
    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 log-probs."""
        return self.adapter.scores(self.network, trajectory).log_probs

    def parts(self) -> dict[str, str]:
        """What the scores depend on, rows apart, by name: see `mmalign.fingerprints`."""
        tensors = [(k, v) for k, v in self.network.state_dict().items() if self.tensors(k)]
        loras = {
            name: lora.scaling(self.network, name)
            for name in lora.names(self.network)
            if self.tensors(f".lora_A.{name}.")
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


class RecordedReference:
    """Scores of another reference, computed once per distinct row and kept on disk.

    The store's folder is named by the inner reference's fingerprint: weights, LoRA and its scale,
    dtype, the adapter's settings (the sampling temperature among them) and code versions. A row's
    key is a hash of everything the network is given, so another tokenizer, template or truncation
    gives other ids and hence other keys, and of the precision of autocast. A stale score therefore
    cannot be read. Bounds are recorded for their (timestep, noise) draws: keep them fixed with
    ``fixed_noise: true`` on the source, and give the policy a ``cache``, so that a picture's latent
    has the same bits in every epoch.

    Args:
        inner: Computes what is missing.
        folder: Where stores are kept.
        parts: What the inner reference's scores depend on; None for its fingerprint alone.
    """

    def __init__(
        self, *, inner: Reference, folder: Path, parts: Mapping[str, str] | None = None
    ) -> None:
        self.inner = inner
        self.starts_at_policy = bool(getattr(inner, "starts_at_policy", False))
        self.store = TensorStore(folder, parts or {"reference": inner.fingerprint()})

    def scores(self, trajectory: Trajectory) -> Tensor:
        """``[B, T]`` float32 log-probs; only rows never seen before are computed."""
        precision = fingerprints.precision_key(trajectory.mask.device.type)
        keys = [key + precision for key in fingerprints.row_keys(trajectory)]
        known = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        found = {key: entry["score"] for key, entry in known.items() if entry is not None}
        missing = {key: i for i, key in enumerate(keys) if key not in found}
        if missing:
            part = trajectory.rows(torch.tensor(list(missing.values())))
            for (key, i), row in zip(missing.items(), self.inner.scores(part).cpu(), strict=True):
                found[key] = row[trajectory.mask[i].cpu()]
                self.store.add(key, {"score": found[key]})
        result = torch.zeros(trajectory.mask.shape, dtype=torch.float32)
        for i, key in enumerate(keys):
            result[i, trajectory.mask[i].cpu()] = found[key]
        return result.to(trajectory.mask.device)

    def fingerprint(self) -> str:
        """The inner reference's."""
        return self.inner.fingerprint()

    def close(self) -> None:
        """Write what is still in memory."""
        self.store.flush()


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
        _refuse_trained_base(policy.model)
        network = _twin(policy.model)
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
        _refuse_trained_base(policy.model)
        network, start = _twin(policy.model), lora.merge_name(policy.model)
        lora.load(network, self.path, name=name, trainable=False)
        lora.activate(network, name)
        return NetworkReference(
            adapter=policy.adapter,
            network=network,
            tensors=lambda key: "lora_" not in key or lora.belongs(key, name),
            starts_at_policy=lora.equal(network, start, name),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Another reference, computed once per row and recorded on disk.

    Attributes:
        of: The reference to record; None for the default one.
        folder: Where the scores are kept; shared by runs with the same reference.
    """

    folder: str
    of: ReferenceSpec | None = None

    def build(self, policy: Policy) -> RecordedReference:
        """Open the store of the reference's fingerprint."""
        inner = default(policy).build(policy) if self.of is None else self.of.build(policy)
        parts = inner.parts() if isinstance(inner, NetworkReference) else None
        return RecordedReference(inner=inner, folder=Path(self.folder), parts=parts)


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


def chosen(
    spec: ReferenceSpec | None, policy: Policy, *, start: str | None = None
) -> ReferenceSpec:
    """The reference a config asks for, with the default where it leaves the choice to us."""
    if spec is None:
        return default(policy, start=start)
    if isinstance(spec, Recorded) and spec.of is None:
        return replace(spec, of=default(policy, start=start))
    return spec


def _twin(model: nn.Module) -> nn.Module:
    """A second network on the very same weights, whose LoRAs can be in another state.

    Only the module objects are copied. Adapters may so call any part of it: there is no state to
    switch around a call, and none that a call could miss.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _refuse_trained_base(model: nn.Module) -> None:
    moved = [k for k, p in model.named_parameters() if p.requires_grad and "lora_" not in k]
    if moved:
        raise ValueError(
            f"{len(moved)} parameters outside the LoRA are trained ({moved[0]}, ...), so the "
            "network without its LoRA is not a fixed reference; use `type: frozen`"
        )
