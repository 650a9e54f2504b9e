"""An average of several models' weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmalign import lora
from mmalign.policy import Policy
from mmalign.references.average import shifted, weighted
from mmalign.references.network import Frozen, NetworkReference, refuse_trained_base, twin


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """SALSA's reference: the average of the policy's start and other models of its architecture.

    ``reference = w_0 start + w_1 theta_1 + ...``, of weights, or of what LoRAs add to them: the
    average of products B A, which is not the product of averages.

    Attributes:
        of: Folders of the other models: LoRAs in peft's layout where the policy trains one, whole
            models where it trains every parameter.
        weights: Of the start and of each folder, summing to 1; None for equal ones, SALSA's with
            one folder.

    References:
        SALSA, 2411.01798.
    """

    of: tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("reference soup: `of` names no other model; there is nothing to mix")
        if self.weights is None:
            return
        if len(self.weights) != len(self.of) + 1 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(
                f"reference soup: weights={list(self.weights)} must be {len(self.of) + 1} numbers "
                "that sum to 1: that of the policy's start, then that of each folder in `of`"
            )

    def build(self, policy: Policy) -> NetworkReference:
        """Load the other models and average.

        Raises:
            ValueError: A folder holds no such model, or its architecture is another.
        """
        share = 1 / (len(self.of) + 1)
        weights = self.weights or (share,) * (len(self.of) + 1)
        trained = lora.names(policy.model)
        network = (self._of_loras if trained else self._of_models)(policy, weights)
        return NetworkReference(
            adapter=policy.adapter,
            network=network,
            tensors=lambda _: True,
            starts_at_policy=weights[0] == 1,
        )

    def _of_loras(self, policy: Policy, weights: Sequence[float]) -> torch.nn.Module:
        model = policy.model
        refuse_trained_base(model)
        parts = [(weights[0], lora.factors(model, lora.merge_name(model)))]
        for number, (weight, path) in enumerate(zip(weights[1:], self.of, strict=True)):
            other, name = twin(model), f"soup-{number}"
            lora.load(other, path, name=name, trainable=False)
            parts.append((weight, lora.factors(other, name)))
        return shifted(model, weighted(parts))

    @torch.no_grad()
    def _of_models(self, policy: Policy, weights: Sequence[float]) -> torch.nn.Module:
        network = Frozen().build(policy).network
        own = dict(policy.model.named_parameters())
        sums = {k: weights[0] * p.float() for k, p in own.items() if p.requires_grad}
        for weight, path in zip(weights[1:], self.of, strict=True):
            found = dict(_like(policy, path).model.named_parameters())
            _check_alike(own, found, path)
            for name, value in sums.items():
                value.add_(found[name].to(value.device).float(), alpha=weight)
        for name, parameter in network.named_parameters():
            if name in sums:
                parameter.copy_(sums[name])
        return network


def _like(policy: Policy, path: str) -> Policy:
    if (Path(path) / "adapter_config.json").is_file():
        raise ValueError(
            f"reference soup: {path} holds a LoRA, and this policy trains every parameter; train a "
            "LoRA (`policy.lora`), or merge that one into its base first"
        )
    if policy.like is None:
        raise ValueError("reference soup of whole models needs a policy that was made by a run")
    return policy.like(path)


def _check_alike(
    own: dict[str, torch.nn.Parameter], other: dict[str, torch.nn.Parameter], path: str
) -> None:
    """Same names, same shapes, and the same values in what is not trained."""
    shapes = {k: p.shape for k, p in own.items()}
    found = {k: p.shape for k, p in other.items()}
    apart = sorted(k for k in shapes.keys() | found.keys() if shapes.get(k) != found.get(k))
    if apart:
        raise ValueError(
            f"reference soup: {path} is of another architecture: {len(apart)} parameters are "
            f"missing, new or of another shape ({', '.join(apart[:3])})"
        )
    frozen = [k for k, p in own.items() if not p.requires_grad]
    changed = [k for k in frozen if not torch.equal(own[k].cpu(), other[k].cpu())]
    if changed:
        raise ValueError(
            f"reference soup: {path} differs in {len(changed)} parameters that this policy does "
            f"not train ({changed[0]}, ...), so it does not come from the same base"
        )
