"""The pass over the data: what the reward says of both sides of every pair, and which pairs repeat.

Nothing of a pair stays in memory but a few numbers; its prompt is kept once however many pairs
share it. With a store nothing is asked twice, also by a later construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mmalign.data.images import to_rgb
from mmalign.diffusion.fifa.importance import Floats
from mmalign.diffusion.fifa.remembering import remembered
from mmalign.diffusion.fifa.selection import Integers, Keys
from mmalign.evaluation import text_of
from mmalign.fingerprints import content_key
from mmalign.prompts import frames_of
from mmalign.protocols import RewardModel
from mmalign.rewards import judged
from mmalign.store import TensorStore
from mmalign.types import Output, Preference, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What is known of N pairs and of their M different prompts.

    Attributes:
        scores: ``[N, 2]`` rewards of the chosen and the rejected side.
        text: ``[N]`` which of ``texts`` the prompt is.
        pair: ``[N]`` a hash of prompt and both outputs, in whichever order they are preferred.
        key: ``[N]`` a hash that tells the order too.
        identical: ``[N]`` whether the two outputs are one and the same.
        texts: The M prompts.
    """

    scores: Floats
    text: Integers
    pair: Keys
    key: Keys
    identical: NDArray[np.bool_]
    texts: Sequence[str]

    @property
    def margin(self) -> Floats:
        """``[N]`` by how much the reward prefers the chosen side; negative where it does not."""
        found: Floats = self.scores[:, 0] - self.scores[:, 1]
        return found


def scored(
    data: Sequence[Preference],
    reward: RewardModel | None,
    *,
    store: TensorStore | None,
    batch_size: int,
) -> Scored:
    """Judge every pair.

    Args:
        data: N pairs, read once each.
        reward: Judges; None to take the pairs' own margins.
        store: Where judgements are kept, or None.
        batch_size: Pairs judged at a time.

    Raises:
        ValueError: The reward failed or gave several numbers an output, or a margin is missing.
    """
    total = len(data)
    scores = np.zeros((total, 2))
    text, pair, key = np.zeros(total, np.int64), np.zeros(total, np.uint64), np.zeros(total, "u8")
    identical = np.zeros(total, bool)
    numbers: dict[str, int] = {}
    reader = _Judge(reward=reward, store=store)
    with tqdm(total=total, desc="judging", unit="pair") as bar:
        for start in range(0, total, batch_size):
            rows = range(start, min(start + batch_size, total))
            pairs = [data[row] for row in rows]
            sides = [(_digest(p.chosen), _digest(p.rejected)) for p in pairs]
            for row, one, (chosen, rejected) in zip(rows, pairs, sides, strict=True):
                text[row] = numbers.setdefault(text_of(one.prompt), len(numbers))
                asked = _asked(one)
                pair[row] = _number([asked, *sorted((chosen, rejected))])
                key[row] = _number([asked, chosen, rejected])
                identical[row] = chosen == rejected and one.rejected_prompt is None
            scores[start : rows.stop] = reader.scores(pairs, sides, start)
            bar.update(len(rows))
    if store is not None:
        store.flush()
    return Scored(
        scores=scores, text=text, pair=pair, key=key, identical=identical, texts=list(numbers)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Says what both sides of pairs earn.

    Attributes:
        reward: Judges; None to take the pairs' own margins.
        store: Where its judgements are kept, or None.
    """

    reward: RewardModel | None
    store: TensorStore | None

    def scores(
        self, pairs: Sequence[Preference], sides: Sequence[tuple[str, str]], start: int
    ) -> Floats:
        """``[B, 2]`` of chosen and rejected; ``sides`` are hashes of both outputs."""
        if self.reward is None:
            return np.array([_recorded(pair, start + i) for i, pair in enumerate(pairs)])
        keys = [
            content_key([_asked(pair), dict(pair.prompt.meta), *both])
            for pair, both in zip(pairs, sides, strict=True)
        ]
        found = remembered(keys, self.store, lambda missing: self._judged(pairs, missing))
        return torch.stack(found).numpy().astype(np.float64)

    def _judged(self, pairs: Sequence[Preference], positions: Sequence[int]) -> Tensor:
        assert self.reward is not None
        prompts: list[Prompt] = []
        outputs: list[Output] = []
        for one in (pairs[i] for i in positions):
            prompts += [one.prompt, one.rejected_prompt or one.prompt]
            outputs += [one.chosen, one.rejected]
        values = judged(self.reward, prompts, outputs)
        if values.dim() != 1:
            raise ValueError(
                f"the reward {type(self.reward).__name__} gives {values.shape[1]} numbers an "
                "output; a margin needs one"
            )
        return values.view(-1, 2)


def _recorded(pair: Preference, row: int) -> tuple[float, float]:
    if pair.margin is None:
        raise ValueError(
            f"row {row} of the data has no margin; give a reward that judges the pairs, or the "
            "column `margin` in every row"
        )
    return pair.margin, 0.0


def _asked(pair: Preference) -> list[object]:
    """What both sides were asked, as plain data."""
    prompts = [pair.prompt, *([] if pair.rejected_prompt is None else [pair.rejected_prompt])]
    return [[repr(p.content), *(_digest(image) for image in p.images)] for p in prompts]


def _digest(output: Output) -> str:
    if isinstance(output, str):
        return f"text {hashlib.sha256(output.encode()).hexdigest()}"
    pixels = [to_rgb(frame) for frame in frames_of(output)]
    whole = b"".join(repr(frame.size).encode() + frame.tobytes() for frame in pixels)
    return hashlib.sha256(whole).hexdigest()


def _number(value: object) -> int:
    """64 bits of a hash: among a million pairs two meet with a probability below 1e-7."""
    return int(content_key(value)[:16], 16)
