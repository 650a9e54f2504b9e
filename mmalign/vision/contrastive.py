"""Contrastive corruption: what a model says of a noised picture, against the right answer.

Where a picture is drowned in noise a model falls back on what usually is in such pictures, which is
the kind of hallucination that visual contrastive decoding (VCD) subtracts while decoding. Here that
answer is the rejected one of a pair, and the picture of both sides is the clear one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign import rng
from mmalign.data.building import Candidate
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Output, Preference, Prompt
from mmalign.vision.completing import Alter, Completed, Decoding, complete
from mmalign.vision.distortion import Distortion, Patches, distorted
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.lvlm_policy import LVLMPolicy

NAME = "contrastive"
NOISE_STEPS = 1000


def kept_shares() -> Tensor:
    """``[1000]`` float64, how much of a picture's variance is left after each step of noising.

    ``abar_t = prod_{s <= t} (1 - beta_s)`` with
    ``beta_s = 1e-5 + (5e-3 - 1e-5) sigmoid(-6 + 12 s / 999)``.

    A picture ``x``, as its processor normalised it, becomes ``sqrt(abar) x + sqrt(1 - abar) e``, e
    standard normal.

    Returns:
        0.99998 after step 0, 0.745 after step 500, 0.081 after step 999.

    References:
        2311.16922 (VCD); DAMO-NLP-SG/VCD, ``vcd_utils/vcd_add_noise.py``, whose step is the index
        into these shares.
    """
    steps = torch.linspace(-6, 6, NOISE_STEPS, dtype=torch.float64)
    betas = 1e-5 + (5e-3 - 1e-5) * steps.sigmoid()
    return (1 - betas).cumprod(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrastive:
    """Contrastive corruption: the right answer preferred to what is said of the noised picture.

    Attributes:
        data: Prompts with pictures, and their right answers.
        policy: Answers about the noised pictures.
        noise_step: How much noise, 0 to 999; VCD's experiments use 500.
        decoding: How answers are drawn.
        attempts: How often to draw, with other noise, until an answer differs from the right one.
        batch_size: Rows in one forward pass.
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    noise_step: int = 500
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=512))
    attempts: int = 3
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.noise_step < NOISE_STEPS:
            raise ValueError(f"noise_step={self.noise_step} must be 0 to {NOISE_STEPS - 1}")
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")

    def prepare(self, *, seed: int) -> Corrupting:
        """Load the model, open the data.

        Raises:
            ValueError: The data's answers are pictures.
        """
        return Corrupting(
            settings=self,
            rows=self.data.demonstrations(),
            policy=self.policy.load().on_accelerator(),
            seed=seed,
        )


class Corrupting:
    """Contrastive corruption at work.

    Args:
        settings: Of the builder.
        rows: Prompts with right answers.
        policy: Answers.
        seed: Of every draw.
    """

    def __init__(
        self,
        *,
        settings: Contrastive,
        rows: Sequence[tuple[Prompt, Output]],
        policy: Policy,
        seed: int,
    ) -> None:
        self.settings, self.rows, self.policy, self.seed = settings, rows, policy, seed
        adapter = policy.adapter
        assert isinstance(adapter, LVLMAdapter)
        patched = adapter.family is not None and adapter.family.grid is not None
        self.patches = Patches.of(adapter.processor) if patched else None
        share = 1 - float(kept_shares()[settings.noise_step])
        self.distortion = Distortion(kind="noise", share=share)

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """One candidate a row, a batch of rows at a time."""
        for first in range(start, len(self), self.settings.batch_size):
            numbers = range(first, min(first + self.settings.batch_size, len(self)))
            yield from self._batch(numbers)

    def _batch(self, numbers: Sequence[int]) -> list[Candidate]:
        records = {row: self._record(row) for row in numbers}
        found = {
            row: self._candidate(row, prompt, (right, ""), {}, "no picture")
            for row, (prompt, right) in records.items()
            if not prompt.images
        }
        left = [row for row in numbers if row not in found]
        for attempt in range(self.settings.attempts):
            drawn = self._drawn([records[row][0] for row in left], left, attempt)
            for row, answer in zip(left, drawn, strict=True):
                prompt, right = records[row]
                flaw = _flaw(answer, right)
                sides = (right, answer.text.strip())
                found[row] = self._candidate(row, prompt, sides, {"attempt": attempt}, flaw)
            left = [row for row in left if found[row].dropped is not None]
        return [found[row] for row in numbers]

    def _record(self, row: int) -> tuple[Prompt, str]:
        prompt, right = self.rows[row]
        if not isinstance(right, str):
            raise ValueError(f"row {row}: the right answer is a picture, and {NAME} needs text")
        return prompt, right

    def _drawn(
        self, prompts: Sequence[Prompt], rows: Sequence[int], attempt: int
    ) -> list[Completed]:
        """What the policy says of each prompt with its pictures noised."""
        return complete(
            self.policy,
            prompts,
            decoding=self.settings.decoding,
            generators=[rng.generator(self.seed, NAME, "answer", row, attempt) for row in rows],
            altered=[self._noising(row, attempt) for row in rows],
            batch_size=self.settings.batch_size,
        )

    def _noising(self, row: int, attempt: int) -> Alter:
        return partial(
            distorted,
            distortion=self.distortion,
            generator=rng.generator(self.seed, NAME, "noise", row, attempt),
            patches=self.patches,
        )

    def _candidate(
        self,
        row: int,
        prompt: Prompt,
        sides: tuple[str, str],
        more: Mapping[str, Any],
        flaw: str | None,
    ) -> Candidate:
        meta = {"builder": NAME, "row": row, "noise_step": self.settings.noise_step, **more}
        pair = Preference(prompt=prompt, chosen=sides[0], rejected=sides[1], meta=meta)
        return Candidate(preference=pair, row=row, dropped=flaw)


def _flaw(answer: Completed, right: str) -> str | None:
    if not answer.ended:
        return "unfinished answer"
    text = answer.text.strip()
    if not text:
        return "empty answer"
    return "right answer" if text == right.strip() else None
