"""Of the last layer, what is read: the positions that scored tokens are predicted from.

The layers before need every position of a prompt, since later ones look back at it. After the last
one nobody looks: of a prompt it has to make keys and values, and a query, an attention and an MLP
of its last position alone, which predicts the first token of the answers. So the rows that nothing
is read from are left out of the projections around attention and of the MLP, and stand there as
zeros, which changes no number that is read and no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from mmalign.text.layout import LAYOUT, Layout

ATTENTION, MLP = "self_attn", "mlp"
PARTS = ("self_attn.q_proj", "self_attn.o_proj", MLP)
"""Modules that work on each row by itself, and whose rows may so be left out."""
DENSE = "mlp.down_proj"
"""Not in a mixture of experts, whose layers count the rows that they are given."""


class _LastLayer:
    """Hooks of one layer's modules; attention, which runs first, tells the others the rows."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.count = 0

    def attending(
        self, module: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before attention."""
        layout: Layout | None = named.get(LAYOUT)
        self.rows = None if layout is None else layout.read
        return None if layout is None else (arguments, {**named, LAYOUT: layout.of_last_layer()})

    def narrow(self, module: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor] | None:
        """Before a part: only the rows that are read."""
        if self.rows is None:
            return None
        (states,) = arguments
        self.count = states.shape[1]
        return (states.index_select(1, self.rows),)

    def widen(self, module: nn.Module, arguments: Any, found: Tensor) -> Tensor | None:
        """After a part: zeros for the others."""
        if self.rows is None:
            return None
        zeros = found.new_zeros(found.shape[0], self.count, found.shape[2])
        return zeros.index_copy(1, self.rows, found)


def narrow_last_layer(decoder: PreTrainedModel) -> list[RemovableHandle]:
    """Have the last layer of a decoder leave out what is not read of packed rows.

    Nothing changes where no layout is passed.

    Args:
        decoder: Whose attention takes a layout.

    Returns:
        Handles that undo it; none where the layer is not made of the usual parts.
    """
    modules = dict(decoder.named_modules())
    last = f"layers.{decoder.config.num_hidden_layers - 1}."
    if any(last + name not in modules for name in (ATTENTION, *PARTS, DENSE)):
        return []
    hooks = _LastLayer()
    attention = modules[last + ATTENTION]
    handles = [attention.register_forward_pre_hook(hooks.attending, with_kwargs=True)]
    for name in PARTS:
        handles.append(modules[last + name].register_forward_pre_hook(hooks.narrow))
        handles.append(modules[last + name].register_forward_hook(hooks.widen))
    return handles
