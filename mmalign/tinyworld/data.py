"""The tiny world as a data set and as a judge, in the form configs name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmalign.protocols import RewardModel
from mmalign.tinyworld.judges import AnswerJudge, ArithmeticJudge, DescriptionJudge, ImageJudge
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Labelled, Output, Preference, Prompt, Ranking

TaskName = Literal["arithmetic", "describe", "vqa", "multi_image", "draw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWorld:
    """Prompts and preferences drawn from the tiny world.

    Attributes:
        task: What is asked.
        split: Training or held-out prompts; the two never meet.
        size: How many.
        seed: Of the draw.
        flip_rate: Share of recorded preferences with the sides swapped (label noise).
    """

    task: TaskName
    split: Literal["train", "heldout"] = "train"
    size: int = 1000
    seed: int = 0
    flip_rate: float = 0.0

    def preferences(self) -> Sequence[Preference]:
        """Correct outputs preferred to corrupted ones."""
        return TASKS[self.task].preferences(
            size=self.size, seed=self.seed, flip_rate=self.flip_rate, split=self.split
        )

    def prompts(self) -> Sequence[Prompt]:
        """Prompts alone."""
        return TASKS[self.task].prompts(split=self.split, size=self.size, seed=self.seed)

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """Prompts with correct outputs."""
        return TASKS[self.task].demonstrations(split=self.split, size=self.size, seed=self.seed)

    def unpaired(self) -> Sequence[Labelled]:
        """One output of each prompt: correct and desirable, or, every second one, corrupted."""
        return [
            Labelled(prompt=p.prompt, completion=p.rejected if odd else p.chosen, label=not odd)
            for number, p in enumerate(self.preferences())
            for odd in [number % 2 == 1]
        ]

    def rankings(self) -> Sequence[Ranking]:
        """Lists of up to four outputs of a prompt, scored by how much of each is right."""
        return TASKS[self.task].rankings(split=self.split, size=self.size, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskJudge:
    """The exact judge of whatever task a prompt belongs to.

    Attributes:
        partial: Whether a half-right sum or picture earns a part of the score; the exact judge's
            0 or 1 otherwise. Descriptions are graded, and short answers are not, in either case.
    """

    partial: bool = False

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` scores in [0, 1].

        Raises:
            ValueError: A prompt is none of the tiny world's.
        """
        scores = torch.zeros(len(outputs))
        tasks = [str(prompt.meta.get("task")) for prompt in prompts]
        for task in sorted(set(tasks)):
            rows = [i for i, name in enumerate(tasks) if name == task]
            found = self._judge(task)([prompts[i] for i in rows], [outputs[i] for i in rows])
            scores[rows] = found
        return scores

    def _judge(self, task: str) -> RewardModel:
        judges: dict[str, RewardModel] = {
            "arithmetic": ArithmeticJudge(partial=self.partial),
            "describe": DescriptionJudge(),
            "vqa": AnswerJudge(),
            "multi_image": AnswerJudge(),
            "draw": ImageJudge(partial=self.partial),
        }
        if task not in judges:
            raise ValueError(
                f"the tiny world's judge was given a prompt of task {task!r}; it knows "
                f"{sorted(judges)} (a prompt's task is in its column 'task')"
            )
        return judges[task]
