"""Averages of what LoRAs make.

A LoRA adds s B A to a weight. An average of several such products is not made by averaging their
factors: with (A, B) and (-A, -B), which add the same, the averaged factors add nothing. Here the
products themselves are averaged: a few of them exactly and cheaply as one wider pair of factors,

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]

and many of them (an average over a whole run) as a dense matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmalign import lora
from mmalign.lora import Factors
from mmalign.references.network import twin


class Shifted(nn.Module):
    """A linear layer and what is added to its weight: ``base(x) + up down x``.

    Args:
        base: The layer, shared with the policy.
        up: ``[out, R]`` float32, or ``[out, in]`` where ``down`` is None.
        down: ``[R, in]`` float32, or None for the identity.
    """

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor | None) -> None:
        super().__init__()
        self.base = base
        self.up: Tensor
        self.down: Tensor | None
        self.register_buffer("up", up)
        self.register_buffer("down", down)

    @property
    def weight(self) -> Tensor:
        """The base's: models look at its dtype."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """As a LoRA's layer: added in float32, returned in the base's precision."""
        found: Tensor = self.base(x)
        inner = x.to(self.up.dtype)
        if self.down is not None:
            inner = nn.functional.linear(inner, self.down)
        return (found + nn.functional.linear(inner, self.up)).to(found.dtype)


def weighted(parts: Sequence[tuple[float, Mapping[str, Factors]]]) -> dict[str, Factors]:
    """One pair of factors for each layer, making the weighted sum of the parts' products.

    Args:
        parts: Weights, and factors by layer (`mmalign.lora.factors`); a part may lack layers.

    Returns:
        By layer, copies: the up of rank R = the ranks' sum, and the down.
    """
    found: dict[str, list[Factors]] = {}
    for weight, factors in parts:
        for name, (up, down) in factors.items():
            found.setdefault(name, []).append((weight * up, down))
    return {
        name: (torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs], 0))
        for name, pairs in found.items()
    }


def shifted(model: nn.Module, added: Mapping[str, tuple[Tensor, Tensor | None]]) -> nn.Module:
    """A network on the weights of ``model``, its LoRA replaced by what is ``added`` to each layer.

    Args:
        model: Carries a LoRA; unchanged.
        added: By name of layer, the up and down of `Shifted`.
    """
    network = twin(model)
    lora.disable(network)
    for name, (up, down) in added.items():
        layer = network.get_submodule(name)
        inner = layer.base_layer if lora.carries(layer) else layer
        assert isinstance(inner, nn.Module)
        network.set_submodule(name, Shifted(inner, up, down))
    return network.eval().requires_grad_(False)
