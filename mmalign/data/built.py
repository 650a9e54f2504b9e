"""Pairs that a builder makes when they are first asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign import distributed
from mmalign.data.building import Builder, construct
from mmalign.data.files import File
from mmalign.types import Output, Preference, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a builder makes, made where the file is not there yet: method and data in one config.

    Attributes:
        builder: Makes the pairs, as ``mmalign data`` does.
        path: The ``.jsonl`` file; its settings go beside it, and a file that was made with others
            is refused.
        rows: Only so many rows of the builder's data; None for all.
        seed: Of the builder's draws.
    """

    builder: Builder
    path: str
    rows: int | None = None
    seed: int = 0

    def preferences(self) -> Sequence[Preference]:
        """The pairs worth training on."""
        return self._file().preferences()

    def prompts(self) -> Sequence[Prompt]:
        """Their prompts."""
        return self._file().prompts()

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """Their prompts, with what `File` takes for right outputs."""
        return self._file().demonstrations()

    def _file(self) -> File:
        """The file, complete.

        Raises:
            ValueError: It was made with other settings, it is missing and several processes would
                make it, or the builder refuses its settings.
        """
        from mmalign import config

        path = Path(self.path)
        beside = path.with_name(f"{path.stem}.settings.json")
        made_from = {
            "builder": config.settings_of(self.builder),
            "rows": self.rows,
            "seed": self.seed,
        }
        if path.exists():
            if not beside.is_file():
                raise ValueError(
                    f"{path} was not made by this run's builder ({beside} is missing); read it "
                    "with `type: file`, or choose another path"
                )
            if json.loads(beside.read_text(encoding="utf-8")) != made_from:
                raise ValueError(
                    f"{path} was made with other settings than the builder has now; choose another "
                    f"path, or remove it and {beside}"
                )
            return File(path=self.path)
        if distributed.world_size() > 1:
            raise ValueError(
                f"{path} is missing, and {distributed.world_size()} processes would all make it; "
                "make it first by starting the run with one process"
            )
        described = json.dumps(made_from, sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        # First, so that a file never stands without its settings.
        beside.write_text(described, encoding="utf-8")
        construct(self.builder, path, seed=self.seed, rows=self.rows, settings=described)
        return File(path=self.path)
