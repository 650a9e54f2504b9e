"""Several data sets read as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar, overload

from mmalign.blame import where
from mmalign.run import DataSpec, LabelledData, RankedData
from mmalign.types import Labelled, Output, Preference, Prompt, Ranking

Record = TypeVar("Record")


class Chained(Sequence[Record], Generic[Record]):
    """The records of several sequences, one after the other; none is read before it is asked for.

    Args:
        parts: The sequences.
    """

    def __init__(self, parts: Sequence[Sequence[Record]]) -> None:
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        """A record, or the list of those in a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        part = bisect_right(self.ends, at)
        return self.parts[part][at - self._starts(part)]

    def where(self, number: int) -> str:
        """The place of a record."""
        part = bisect_right(self.ends, number)
        return where(self.parts[part], number - self._starts(part))

    def _starts(self, part: int) -> int:
        """The number of a part's first record."""
        return self.ends[part] - len(self.parts[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Several:
    """Several data sets, one after the other: shuffling mixes them in proportion to their sizes.

    Attributes:
        parts: The data sets. One file twice, with other ``columns`` each time, gives both of two
            columns of answers.
    """

    parts: tuple[DataSpec, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty; name at least one data set")

    def preferences(self) -> Sequence[Preference]:
        """The pairs of all parts."""
        return Chained([part.preferences() for part in self.parts])

    def prompts(self) -> Sequence[Prompt]:
        """The prompts of all parts."""
        return Chained([part.prompts() for part in self.parts])

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """The demonstrations of all parts."""
        return Chained([part.demonstrations() for part in self.parts])

    def unpaired(self) -> Sequence[Labelled]:
        """The labelled outputs of all parts.

        Raises:
            ValueError: A part has none.
        """
        found = []
        for number, part in enumerate(self.parts):
            if not isinstance(part, LabelledData):
                raise ValueError(f"parts[{number}], {type(part).__name__}, has no labelled outputs")
            found.append(part.unpaired())
        return Chained(found)

    def rankings(self) -> Sequence[Ranking]:
        """The lists of all parts.

        Raises:
            ValueError: A part has none.
        """
        found = []
        for number, part in enumerate(self.parts):
            if not isinstance(part, RankedData):
                raise ValueError(f"parts[{number}], {type(part).__name__}, has no ranked lists")
            found.append(part.rankings())
        return Chained(found)
