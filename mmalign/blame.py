"""Which record of a data set an adapter refuses: its place in the file, and which part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable


class Refused(ValueError):
    """An adapter cannot use something that it was given.

    Args:
        kind: A prompt, or a row: an output, numbered as the rows of the trajectory.
        number: Which one of those that were given.
        reason: What is wrong and what to do, as it reads behind a name: " has ..." or ": ...".
    """

    def __init__(self, kind: Literal["prompt", "row"], number: int, reason: str) -> None:
        super().__init__(f"{kind} {number}{reason}")
        self.kind, self.number, self.reason = kind, number, reason


@runtime_checkable
class Located(Protocol):
    """Data whose records stand somewhere."""

    def where(self, number: int) -> str:
        """The place of a record, as messages name it: a file and a line."""
        ...


def where(data: object, number: int) -> str:
    """The place of record ``number``, or its number where data have no places."""
    return data.where(number) if isinstance(data, Located) else f"row {number} of the data"


@contextmanager
def naming(
    data: object, *, prompts: Sequence[int], rows: Sequence[tuple[int, str]] = ()
) -> Iterator[None]:
    """Within it, what an adapter refuses is named by its place in the data.

    Args:
        data: Whose records an adapter is given.
        prompts: The record of each prompt.
        rows: Of each output the record, and what it is called there.

    Raises:
        ValueError: Naming the record, in the place of a `Refused`.
    """
    try:
        yield
    except Refused as error:
        number, name = (
            (prompts[error.number], "the prompt") if error.kind == "prompt" else rows[error.number]
        )
        raise ValueError(f"{where(data, number)}, {name}{error.reason}") from error
