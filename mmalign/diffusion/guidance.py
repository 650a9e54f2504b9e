"""How a guidance scale acts: on two answers of the network, or inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from mmalign.diffusion.packing import pack, unpack

if TYPE_CHECKING:
    from mmalign.diffusion.families import Conditioning, Family


class Guidance(Protocol):
    """A pipeline's way of guiding."""

    def answer(
        self,
        family: Family,
        model: nn.Module,
        inputs: Tensor,
        timestep: Tensor,
        given: Conditioning,
        scale: float,
    ) -> Tensor:
        """The guided prediction, float32, of rows ``inputs`` with their conditions ``given``."""
        ...

    def of_bound(self, scale: float) -> float:
        """The scale at which a bound asks the network, where sampling uses ``scale``."""
        ...


def linear(without: Tensor, answer: Tensor, scale: float) -> Tensor:
    """``u + scale (c - u)``."""
    return without + scale * (answer - without)


def renormalised(without: Tensor, answer: Tensor, scale: float) -> Tensor:
    """`linear`, every packed token then as long as that of the answer to the prompt."""
    guided, wanted = pack(linear(without, answer, scale)), pack(answer)
    lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (wanted, guided)]
    return unpack(guided * (lengths[0] / lengths[1]), answer.shape[-2])


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierFree:
    """Two answers, with and without the prompt, in one call; a scale of 1 asks for one alone.

    Attributes:
        combine: Of the answer without the prompt, the one with it and the scale.
    """

    combine: Callable[[Tensor, Tensor, float], Tensor] = linear

    def answer(
        self,
        family: Family,
        model: nn.Module,
        inputs: Tensor,
        timestep: Tensor,
        given: Conditioning,
        scale: float,
    ) -> Tensor:
        """``combine`` of the two halves of one call."""
        if scale == 1:
            return family.predict(model, inputs, timestep, given).float()
        empty = family.embed.empty()
        # What is no part of a text (a picture to edit) is the same in both halves.
        both = {
            k: torch.cat([empty[k].to(v).expand_as(v) if k in empty else v, v])
            for k, v in given.items()
        }
        answers = family.predict(model, torch.cat([inputs] * 2), torch.cat([timestep] * 2), both)
        without, answer = answers.float().chunk(2)
        return self.combine(without, answer, scale)

    def of_bound(self, scale: float) -> float:
        """1: a bound is of the conditional network, however pictures are sampled."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The network reads the scale itself, as the condition "guidance" ``[B]`` (distilled models).

    Such a network has no answer without a scale, so a bound asks it at the scale of sampling.
    """

    def answer(
        self,
        family: Family,
        model: nn.Module,
        inputs: Tensor,
        timestep: Tensor,
        given: Conditioning,
        scale: float,
    ) -> Tensor:
        """One call."""
        guidance = torch.full((len(inputs),), scale, device=inputs.device)
        told = {**given, "guidance": guidance}
        return family.predict(model, inputs, timestep, told).float()

    def of_bound(self, scale: float) -> float:
        """That of sampling."""
        return scale
