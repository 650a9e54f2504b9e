"""Batches of outputs that are labelled one by one, desirable or not: the source of KTO."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch

from mmalign import rng
from mmalign.blame import naming, where
from mmalign.data.files import Rows
from mmalign.data.several import Chained
from mmalign.epochs import WalkingSource, Where
from mmalign.policy import Policy
from mmalign.run import DataSpec, LabelledData
from mmalign.types import Batch, Labelled, Output, Preference

_log = logging.getLogger(__name__)


class FromPairs(Sequence[Labelled]):
    """The sides of recorded pairs one by one: chosen ones desirable, rejected ones not.

    Args:
        pairs: The recorded pairs; row ``2 i`` is the chosen side of pair ``i``.
    """

    def __init__(self, pairs: Sequence[Preference]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Labelled: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Labelled]: ...

    def __getitem__(self, index: int | slice) -> Labelled | Sequence[Labelled]:
        """A row, or the list of those in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        pair = self.pairs[at // 2]
        if at % 2 == 0:
            return Labelled(prompt=pair.prompt, completion=pair.chosen, label=True)
        prompt = pair.prompt if pair.rejected_prompt is None else pair.rejected_prompt
        return Labelled(prompt=prompt, completion=pair.rejected, label=False)

    def where(self, number: int) -> str:
        """The place of the pair, and which side it is."""
        return f"{where(self.pairs, number // 2)}, {('chosen', 'rejected')[number % 2]} side"


class UnpairedSource(WalkingSource):
    """Batches of labelled outputs, each followed by an output of another prompt where asked for.

    A batch's rows have reward 1 (desirable) or 0; a mismatched one has NaN. An epoch's last rows
    share a batch with the next epoch's first, so that every batch has rows to be mismatched.
    """

    def __init__(self, spec: Unpaired, policy: Policy, seed: int) -> None:
        self.spec, self.policy = spec, policy
        self.data = rows_of(spec)
        super().__init__(
            spec,
            size=len(self.data),
            holds=f"labelled output: {spec.data}",
            seed=seed,
            keep_last=False,
        )
        found = labels_of(self.data)
        self.desirable, self.undesirable = sum(found), len(found) - sum(found)
        _log.info("%d desirable and %d undesirable outputs", self.desirable, self.undesirable)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The rows at these places, each with its mismatched one a group."""
        numbers = [everything[place][1] for place in places]
        rows = [self.data[number] for number in numbers]
        outputs: list[list[Output]] = [[row.completion] for row in rows]
        if self.spec.mismatched:
            for place, row, sides in zip(places, rows, outputs, strict=True):
                sides.append(self._of_another(everything, place, row))
        generators = [
            rng.generator(self.seed, "encode", 0 if self.spec.fixed_noise else epoch, number)
            for epoch, number in (everything[place] for place in places)
        ]
        each = len(outputs[0])
        called = ("completion", "the other completion it is set beside")[:each]
        named = [(number, name) for number in numbers for name in called]
        with naming(self.data, prompts=numbers, rows=named):
            trajectory = self.policy.adapter.encode(
                [row.prompt for row in rows], outputs, generators=generators
            )
        label = torch.tensor([row.label for row in rows]).repeat_interleave(each)
        reward = label.float()
        if self.spec.mismatched:
            reward[1::2] = float("nan")
        return Batch(
            trajectory=trajectory,
            group=torch.arange(len(rows)).repeat_interleave(each),
            reward=reward,
            label=label,
            weight=trajectory.mask.float(),
        ).to(trajectory.mask.device)

    def _of_another(self, everything: Sequence[Where], place: int, row: Labelled) -> Output:
        """The output of the nearest row before this one, in the global batch, of another prompt."""
        for back in range(1, len(everything)):
            other = self.data[everything[place - back][1]]
            before, now = other.prompt, row.prompt
            if before.content != now.content or before.images != now.images:
                return other.completion
        raise ValueError(
            f"all {len(everything)} rows of a batch ask the same, so none has an output of another "
            "prompt to be mismatched with; use a larger batch_size, or `mismatched: false`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaired:
    """Outputs labelled one by one.

    Attributes:
        data: Where they come from; a file has them in its columns ``completion`` and ``label``.
        rows: "labelled" reads labelled outputs; "pairs" reads recorded pairs and takes each side
            for itself, chosen ones desirable and rejected ones not.
        batch_size: Rows of a global batch, mismatched ones not counted.
        mismatched: Whether every row is followed by the nearest earlier output of another prompt,
            which is scored and not trained on: kto takes its KL point from these.
        shuffle: Whether each epoch is shuffled anew.
        fixed_noise: Whether a row keeps its (timestep, noise) draws in every epoch; no effect on
            models whose likelihood is exact.
    """

    data: DataSpec
    rows: Literal["labelled", "pairs"] = "labelled"
    batch_size: int = 32
    mismatched: bool = False
    shuffle: bool = True
    fixed_noise: bool = False

    def build(self, policy: Policy, *, seed: int) -> UnpairedSource:
        """The source at its beginning."""
        return UnpairedSource(self, policy, seed)


def rows_of(spec: Unpaired) -> Sequence[Labelled]:
    """The labelled outputs that a source reads.

    Raises:
        ValueError: The data set has no labels, or the settings do not fit each other.
    """
    if spec.mismatched and spec.batch_size < 2:
        raise ValueError(
            f"batch_size={spec.batch_size} leaves no other row to be mismatched with; use 2 or more"
        )
    if spec.rows == "pairs":
        return FromPairs(spec.data.preferences())
    if not isinstance(spec.data, LabelledData):
        raise ValueError(
            f"{type(spec.data).__name__} has no labelled outputs; set `rows: pairs` to take the "
            "sides of its pairs, or use data of `type: file`"
        )
    return spec.data.unpaired()


def labels_of(data: Sequence[Labelled]) -> list[bool]:
    """The label of every row, no picture decoded where it can be done without."""
    if isinstance(data, FromPairs):
        return [True, False] * len(data.pairs)
    if isinstance(data, Chained):
        return [label for part in data.parts for label in labels_of(part)]
    if isinstance(data, Rows):
        return [row.label for row in data.parsed()]
    return [row.label for row in data]
