"""Batches of recorded lists: several outputs of a prompt, each with a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign import rng
from mmalign.blame import naming
from mmalign.epochs import WalkingSource, Where
from mmalign.policy import Policy
from mmalign.protocols import Selector
from mmalign.run import DataSpec, RankedData
from mmalign.types import Batch, Output, Ranking, Trajectory


class RankedSource(WalkingSource):
    """Batches of lists; a group is a list, and a row's reward is its score."""

    def __init__(self, spec: Ranked, policy: Policy, seed: int) -> None:
        if not isinstance(spec.data, RankedData):
            raise ValueError(
                f"{type(spec.data).__name__} has no lists of scored outputs; use data of `type: "
                "file` with the columns 'completions' and 'scores'"
            )
        self.spec, self.policy = spec, policy
        self.data = spec.data.rankings()
        super().__init__(spec, size=len(self.data), holds=f"ranked list: {spec.data}", seed=seed)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The lists at these places, or what the selector keeps of them."""
        chosen = [everything[place] for place in places]
        numbers = [number for _, number in chosen]
        lists = [self.data[number] for number in numbers]
        generators = [
            rng.generator(self.seed, "encode", 0 if self.spec.fixed_noise else epoch, number)
            for epoch, number in chosen
        ]
        prompts = [one.prompt for one in lists]
        outputs = [[*one.completions, *_beginnings(one)] for one in lists]
        # Beginnings of completions stand behind them.
        named = [
            (number, f"completions[{i}]")
            for number, listed in zip(numbers, outputs, strict=True)
            for i in range(len(listed))
        ]
        with naming(self.data, prompts=numbers, rows=named):
            trajectory = self.policy.adapter.encode(prompts, outputs, generators=generators)
        starts = torch.tensor([0, *map(len, outputs[:-1])]).cumsum(0).tolist()
        rows = torch.cat(
            [
                start + torch.arange(len(o.completions))
                for start, o in zip(starts, lists, strict=True)
            ]
        )
        step_of = None
        if any(one.steps is not None for one in lists):
            step_of = torch.cat(
                [_step_of(trajectory, one, start) for start, one in zip(starts, lists, strict=True)]
            )
        kept = trajectory.rows(rows)
        sizes = torch.tensor([len(one.completions) for one in lists])
        batch = Batch(
            trajectory=kept,
            group=torch.arange(len(lists)).repeat_interleave(sizes),
            reward=torch.tensor([score for one in lists for score in one.scores]),
            weight=kept.mask.float(),
            step_of=step_of,
        ).to(kept.mask.device)
        return batch if self.spec.selector is None else self.spec.selector(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Recorded lists of scored outputs, of any lengths.

    Attributes:
        data: Where the lists come from; a file has them in ``completions`` (or
            ``completion_images``) and ``scores``.
        batch_size: Lists of a global batch.
        selector: Which rows are paired, for objectives of pairs: ``all_pairs``,
            ``best_against_rest``, ``adjacent``, ``best_worst``; None leaves the lists whole, of
            which an objective of pairs makes all pairs.
        shuffle: Whether each epoch is shuffled anew.
        fixed_noise: Whether a list keeps its (timestep, noise) draws in every epoch; no effect on
            models whose likelihood is exact.
    """

    data: DataSpec
    batch_size: int = 16
    selector: Selector | None = None
    shuffle: bool = True
    fixed_noise: bool = False

    def build(self, policy: Policy, *, seed: int) -> RankedSource:
        """The source at its beginning."""
        return RankedSource(self, policy, seed)


def _beginnings(ranking: Ranking) -> list[Output]:
    """Where steps end: every branch up to each of its steps but the last, one branch after another.

    They are encoded to see which tokens they have in common with the whole, and then dropped.
    """
    if ranking.steps is None:
        return []
    return ["".join(steps[:n]) for steps in ranking.steps for n in range(1, len(steps))]


def _step_of(trajectory: Trajectory, ranking: Ranking, start: int) -> Tensor:
    """``[K, T]`` int64: the step of every token of a list's K rows, which begin at ``start``.

    A token that straddles two steps belongs to the second: as far as a beginning and the whole
    branch agree, token by token, the branch has not gone beyond that step.
    """
    count, longest = len(ranking.completions), trajectory.mask.shape[1]
    found = torch.zeros(count, longest, dtype=torch.int64)
    if ranking.steps is None:
        return found
    beginning = start + count
    for number, steps in enumerate(ranking.steps):
        for _ in range(len(steps) - 1):
            common = _common(trajectory, start + number, beginning)
            found[number, common:] += 1
            beginning += 1
    return found


def _common(trajectory: Trajectory, whole: int, part: int) -> int:
    """How many steps two rows have in common at their beginnings."""
    same = trajectory.mask[whole] & trajectory.mask[part]
    for value in trajectory.stepwise.values():
        same = same & (value[whole] == value[part]).view(len(same), -1).all(1)
    return int(same.long().cumprod(0).sum())
