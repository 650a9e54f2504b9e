"""What `mmalign.head` adds up over the symbols, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.tiles import Block, Head, Side, Tiling, accumulate, tiling, without
from mmalign.tokens import entropy as entropy_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What `head_scores` was asked; ``tokens`` are ``[N, 1]``, ``best`` is k, or 0 for none.

    Attributes:
        collision: Whether the log of ``sum p^2`` is wanted.
    """

    head: Head
    tokens: Tensor
    names: tuple[str, ...]
    against: tuple[Tensor, Head] | None
    best: int
    collision: bool = False

    def other(self) -> Side | None:
        """The reference."""
        return None if self.against is None else Side(*self.against)

    @property
    def last(self) -> int:
        """The last name's buffer, where the reference's logits stand before they are used."""
        return len(self.names)

    def tiling(self, side: Side) -> Tiling:
        """Buffers for the logits, for each name, and for the slope of the cap."""
        return tiling(side, buffers=1 + len(self.names) + (side.cap is not None))


class Sums:
    """What is added up over the symbols, as in an online softmax: ``y`` is ``z - top``.

    Attributes:
        top: ``[N, 1]`` the largest logit so far.
        chosen: ``[N, 1]`` logit of the chosen symbol.
        sums: ``[N, 1]`` under each name: ``sum e^y f``, where f is 1 for log_probs, y for entropy,
            and the difference of the two networks' logits for kl.
        moments: ``[N, H]`` under each name: ``sum e^y f z' w``, with w the symbol's row of the
            weight and z' the slope of the cap; empty where no derivative is wanted.
        in_place: Whether `add` leaves ``e^y`` in the place of the logits.
        other: ``[N, 1]`` log of the reference's ``sum e^z``.
        best: ``[N, k]`` the largest logits.
        squares: ``[N, 1]`` ``sum e^2y``, where the collision is wanted.
    """

    def __init__(self, side: Side, job: Job, *, derivative: bool) -> None:
        def filled(value: float, columns: int = 1) -> Tensor:
            shape = (len(side.states), columns)
            return torch.full(shape, value, dtype=side.work, device=side.states.device)

        self.side, self.job = side, job
        self.in_place = job.names == ("log_probs",) and side.cap is None
        # Not -inf: where the first block is all banned, -inf - -inf would spoil the sums.
        self.top = filled(torch.finfo(side.work).min)
        # A token outside the vocabulary must not pass for one of probability 0.
        self.chosen = filled(float("nan"))
        self.other = filled(float("-inf"))
        self.best = filled(float("-inf"), min(job.best, len(job.head.weight)))
        self.squares = filled(0.0)
        self.sums = {name: filled(0.0) for name in job.names}
        width = side.states.shape[1]
        self.moments = {name: filled(0.0, width) for name in job.names if derivative}

    def add(self, rows: slice, block: Block, z: Tensor, tiling: Tiling) -> None:
        """Add a tile of logits, in which the reference's stand in the last name's buffer."""
        place, inside = block.places(self.job.tokens[rows])
        self.chosen[rows] = torch.where(inside, z.gather(1, place), self.chosen[rows])
        if self.job.best:
            largest = z.topk(min(self.best.shape[1], z.shape[1]), dim=1).values
            together = torch.cat([self.best[rows], largest], 1)
            self.best[rows] = together.topk(self.best.shape[1], dim=1).values
        before = self.top[rows]
        top = torch.maximum(before, z.amax(1, keepdim=True))
        shift, self.top[rows] = before - top, top
        tiles = self._integrands(rows, block, z, tiling)
        slope = None
        if self.moments and self.side.cap is not None:
            slope = self.side.slope(z, block, tiling.tile(-1, rows, block))
        self._shift(rows, shift)
        if self.job.collision:
            length = torch.linalg.vector_norm(tiles["log_probs"], dim=1, keepdim=True)
            self.squares[rows] += length.square_()
        for name, tile in tiles.items():
            self.sums[name][rows] += tile.sum(1, keepdim=True)
            if self.moments:
                tile = tile if slope is None else tile.mul_(slope)
                accumulate(self.moments[name][rows], tile, block.weight)

    def _integrands(
        self, rows: slice, block: Block, z: Tensor, tiling: Tiling
    ) -> dict[str, Tensor]:
        """``e^y f`` under each name."""
        if self.in_place:
            return {"log_probs": z.sub_(self.top[rows]).exp_()}
        found = {name: tiling.tile(i, rows, block) for i, name in enumerate(self.job.names, 1)}
        e = found["log_probs"]
        if "entropy" in found:
            y = torch.sub(z, self.top[rows], out=found["entropy"])
            torch.exp(y, out=e)
            without(y, block, 0.0).mul_(e)
        else:
            torch.sub(z, self.top[rows], out=e).exp_()
        if "kl" in found:
            reference = found["kl"]
            mass = reference.logsumexp(1, keepdim=True)
            self.other[rows] = torch.logaddexp(self.other[rows], mass)
            without(torch.sub(z, reference, out=reference), block, 0.0).mul_(e)
        return found

    def _shift(self, rows: slice, shift: Tensor) -> None:
        """Refer the sums to another top, ``shift`` (at most 0) away."""
        fade = shift.exp()
        self.squares[rows] *= fade.square()
        for sums in (self.sums, self.moments):
            if "entropy" in sums:
                sums["entropy"][rows] += shift * sums["log_probs"][rows]
            for total in sums.values():
                total[rows] *= fade

    @property
    def log_total(self) -> Tensor:
        """``[N, 1]`` log of the sum of ``e^z``."""
        return self.top + self.sums["log_probs"].log()

    def values(self) -> dict[str, Tensor]:
        """``[N, 1]`` under each name."""
        total = self.sums["log_probs"]
        found = {"log_probs": self.chosen - self.log_total}
        if "entropy" in self.sums:
            found["entropy"] = total.log() - self.sums["entropy"] / total
        if "kl" in self.sums:
            found["kl"] = self.sums["kl"] / total - self.log_total + self.other
        return found

    def outputs(self) -> tuple[Tensor, ...]:
        """``[N]`` float32: the names', and where asked for mass and entropy, and collision."""
        found = list(self.values().values())
        if self.job.best:
            found.append((self.best.logsumexp(1, keepdim=True) - self.log_total).exp())
            found.append(entropy_of(self.best).unsqueeze(1))
        if self.job.collision:
            found.append(self.squares.log() - 2 * self.sums["log_probs"].log())
        return tuple(value.squeeze(1).float() for value in found)

    def derivatives(self) -> list[Tensor]:
        """``[N, H]`` for each name: the derivative of its value by the states.

        With the mean E over the step distribution, and w' a symbol's row of the weight times the
        slope of the cap, that is ``w'_token - E w'`` for log_probs, and ``E f w' - E f E w'`` for
        kl, with the opposite sign for entropy.
        """
        side, total = self.side, self.sums["log_probs"]
        mean = self.moments["log_probs"] / total
        # A banned token has probability 0 whatever the states are.
        slope = self.chosen.isfinite().to(side.work)
        if side.cap is not None:
            slope = torch.where(slope > 0, 1 - (self.chosen / side.cap) ** 2, slope)
        own = side.head.weight.detach()[self.job.tokens.squeeze(1)].to(side.work)
        found = [own.mul_(slope).sub_(mean).mul_(side.gain)]
        for name in self.job.names[1:]:
            spread = self.moments[name] / total - self.sums[name] / total * mean
            found.append(spread.mul_(-side.gain if name == "entropy" else side.gain))
        return found
