"""A reward that is somebody's function, in TRL's calling convention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Output, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionReward:
    """``function(prompts=..., completions=..., **columns) -> list[float]``, called by keyword.

    ``columns`` are the columns that every prompt of the batch has. Completions come as the function
    knows them from TRL: a string, or ``[{"role": "assistant", "content": ...}]`` where the prompt
    is a conversation; pictures come as PIL images, clips as tuples of them.

    Attributes:
        path: ``package.module:function``.
        weight: What its values are multiplied by.
        columns: Names of the columns to pass; None passes all, for functions with ``**kwargs``.
    """

    path: str
    weight: float = 1.0
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        module, _, name = self.path.partition(":")
        if not module or not name:
            raise ValueError(f"path={self.path!r} must read package.module:function")

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` float32.

        Raises:
            ValueError: The function cannot be found, raised, or returned another number of values,
                None or something not finite; it names function, row and prompt.
        """
        function = self._function()
        columns = self._shared_columns(prompts)
        completions = [_completion(p, o) for p, o in zip(prompts, outputs, strict=True)]
        asked = [p.content if isinstance(p.content, str) else list(p.content) for p in prompts]
        try:
            values = list(function(prompts=asked, completions=completions, **columns))
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(
                f"reward {self.path} raised {kind}: {error}; it was given {len(outputs)} "
                f"completions and the columns {sorted(columns)}, the first prompt is {asked[0]!r}"
            ) from error
        if len(values) != len(outputs):
            raise ValueError(
                f"reward {self.path} returned {len(values)} values for {len(outputs)} completions"
            )
        checked = [self._number(v, i, prompts[i]) for i, v in enumerate(values)]
        return torch.tensor(checked, dtype=torch.float32) * self.weight

    def _function(self) -> Callable[..., Sequence[Any]]:
        module, _, name = self.path.partition(":")
        try:
            found: Callable[..., Sequence[Any]] = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"reward function {self.path} cannot be imported: {error}") from error
        return found

    def _shared_columns(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        if self.columns is not None:
            for name in self.columns:
                row = next((i for i, p in enumerate(prompts) if name not in p.meta), None)
                if row is not None:
                    raise ValueError(
                        f"reward {self.path} needs the column {name!r}, which the prompt of row "
                        f"{row} lacks; it has {sorted(prompts[row].meta)}"
                    )
            names = set(self.columns)
        else:
            names = set.intersection(*(set(p.meta) for p in prompts)) if prompts else set()
        return {name: [p.meta[name] for p in prompts] for name in sorted(names)}

    def _number(self, value: Any, row: int, prompt: Prompt) -> float:
        usable = isinstance(value, int | float) or (
            isinstance(value, torch.Tensor) and value.numel() == 1
        )
        if not usable or not math.isfinite(float(value)):
            raise ValueError(
                f"reward {self.path} returned {value!r} for row {row} (prompt "
                f"{prompt.content!r}); it must return a finite number for every completion"
            )
        return float(value)


def _completion(prompt: Prompt, output: Output) -> Any:
    if isinstance(prompt.content, str) or not isinstance(output, str):
        return output
    message: Mapping[str, str] = {"role": "assistant", "content": output}
    return [message]
