"""What a policy did, step by step; imported from `mmalign.types`, where the letters stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.prompts import Output
from mmalign.ragged import join, move, pad_steps, take


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """What the policy did, with everything chance decided recorded, so that scoring is a function.

    Attributes:
        mask: ``[B, T]`` bool, True where the policy decided.
        prompt_of: ``[B]`` int64, the prompt of each row (index into the prompts, ``0 .. P - 1``).
        static: Inputs stored once per prompt however many rows share it. A value is a tensor whose
            first axis is P, or a list of length P (ragged entries).
        stepwise: ``[B, T, ...]`` tensors: token, latent, timestep, noise.
        outputs: Length B, decoded: str, PIL image, or None where decoding was not asked for.
        separable: True where a step can be scored without its neighbours (denoising moves).
        log_probs: ``[B, T]`` float32 nats of what was done, under the distribution that drew it; 0
            where masked. None where it is not known: recorded data.

    Example:
        Two answers to one question of a text model, three and two tokens long::

            Trajectory(mask=[[1, 1, 1], [1, 1, 0]], prompt_of=[0, 0],
                       static={"prompt_ids": [tensor([5, 8])]},
                       stepwise={"token": [[4, 7, 2], [9, 2, 0]]}, outputs=["a b", "c"])
    """

    mask: Tensor
    prompt_of: Tensor
    static: Mapping[str, Any]
    stepwise: Mapping[str, Tensor]
    outputs: Sequence[Output | None]
    separable: bool = False
    log_probs: Tensor | None = None

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    @property
    def num_prompts(self) -> int:
        """P, the number of distinct prompt entries."""
        return int(self.prompt_of.max()) + 1 if len(self) else 0

    def rows(self, index: Tensor) -> Trajectory:
        """The rows at ``index`` (``[M]`` int64); prompts nobody refers to any more are dropped."""
        index = index.to(self.prompt_of.device)
        used, prompt_of = torch.unique(self.prompt_of[index], return_inverse=True)
        return replace(
            self,
            mask=self.mask[index],
            prompt_of=prompt_of,
            static={k: take(v, used) for k, v in self.static.items()},
            stepwise={k: v[index] for k, v in self.stepwise.items()},
            outputs=[self.outputs[i] for i in index.tolist()],
            log_probs=None if self.log_probs is None else self.log_probs[index],
        )

    def steps(self, window: slice) -> Trajectory:
        """The steps of ``window`` alone.

        Raises:
            ValueError: The steps depend on each other (text, image codes).
        """
        if not self.separable:
            raise ValueError(
                "the steps of this trajectory depend on each other, so they cannot be scored "
                "apart; leave `steps_per_microbatch` unset for this model"
            )
        return replace(
            self,
            mask=self.mask[:, window],
            stepwise={k: v[:, window] for k, v in self.stepwise.items()},
            log_probs=None if self.log_probs is None else self.log_probs[:, window],
        )

    def bare(self) -> Trajectory:
        """What is left once scored: which steps were decided, and for which prompts."""
        return replace(self, static={}, stepwise={})

    def to(self, device: torch.device | str) -> Trajectory:
        """The same trajectory on ``device``."""
        return replace(
            self,
            mask=self.mask.to(device),
            prompt_of=self.prompt_of.to(device),
            static={k: move(v, device) for k, v in self.static.items()},
            stepwise={k: v.to(device) for k, v in self.stepwise.items()},
            log_probs=None if self.log_probs is None else self.log_probs.to(device),
        )

    @staticmethod
    def concatenate(parts: Sequence[Trajectory]) -> Trajectory:
        """The rows of all parts, in order; shorter step axes are padded with masked zeros.

        ``log_probs`` are kept where every part has them.
        """
        first = parts[0]
        assert all(p.separable == first.separable for p in parts)
        assert all(p.static.keys() == first.static.keys() for p in parts)
        length = max(p.mask.shape[1] for p in parts)
        offsets = torch.tensor([0] + [p.num_prompts for p in parts[:-1]]).cumsum(0).tolist()
        drawn = [pad_steps(p.log_probs, length) for p in parts if p.log_probs is not None]
        return Trajectory(
            mask=torch.cat([pad_steps(p.mask, length) for p in parts]),
            prompt_of=torch.cat([p.prompt_of + o for p, o in zip(parts, offsets, strict=True)]),
            static={k: join([p.static[k] for p in parts]) for k in first.static},
            stepwise={
                k: torch.cat([pad_steps(p.stepwise[k], length) for p in parts])
                for k in first.stepwise
            },
            outputs=[o for p in parts for o in p.outputs],
            separable=first.separable,
            log_probs=torch.cat(drawn) if len(drawn) == len(parts) else None,
        )
