"""``mmalign data povid``: what a half blind model would write at every place of the right answer.

No free generation: every token of the rejected answer is the likeliest one behind the *right*
tokens before it, with noise on the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmalign import rng
from mmalign.data.building import Candidate
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.text.generation import last_positions
from mmalign.types import Output, Preference, Prompt
from mmalign.vision.bdhs.hallucinating import NO_DIFFERENCE, refusal, require_lvlm, text_of_answer
from mmalign.vision.completing import altered_static, beginning_ids, continued
from mmalign.vision.corruption import with_noise
from mmalign.vision.lvlm_policy import LVLMPolicy

NAME = "povid"


@dataclass(frozen=True, slots=True, kw_only=True)
class POVID:
    """Right answers against the likeliest token at each of their places, under a noised picture.

    The distortion that BDHS is compared with. POVID's own noise schedule and the number of its
    steps are not known here; those of the noise variant of BDHS stand in.

    Attributes:
        data: Prompts with right answers.
        policy: The model that is to be aligned.
        noise_steps: Steps of forward diffusion, see `mmalign.vision.corruption.alpha_bar`.
        rows_at_a_time: Rows in one forward pass; no effect on what comes out.

    References:
        2407.02477, the baseline after POVID (2402.11411).
    """

    data: DataSpec
    policy: LVLMPolicy = field(default_factory=LVLMPolicy)
    noise_steps: int = 500
    rows_at_a_time: int = 16

    def __post_init__(self) -> None:
        for name in ("noise_steps", "rows_at_a_time"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")

    def prepare(self, *, seed: int) -> Distorting:
        """Load the model and the data."""
        policy = self.policy.load().on_accelerator()
        require_lvlm(policy)
        return Distorting(self, policy, self.data.demonstrations(), seed)


class Distorting:
    """The builder at work; see `mmalign.data.building.Construction`."""

    def __init__(
        self, spec: POVID, policy: Policy, rows: Sequence[tuple[Prompt, Output]], seed: int
    ) -> None:
        self.spec, self.policy, self.rows, self.seed = spec, policy, rows, seed

    def __len__(self) -> int:
        return len(self.rows)

    def candidates(self, start: int = 0) -> Iterator[Candidate]:
        """A pair for each row, or why there is none."""
        for first in range(start, len(self), self.spec.rows_at_a_time):
            numbers = range(first, min(first + self.spec.rows_at_a_time, len(self)))
            rows = {number: self.rows[number] for number in numbers}
            refused = {n: refusal(prompt, text_of_answer(a)) for n, (prompt, a) in rows.items()}
            usable = [number for number in numbers if refused[number] is None]
            texts = distorted(
                self.policy,
                [rows[number] for number in usable],
                steps=self.spec.noise_steps,
                keys=[(self.seed, NAME, number) for number in usable],
            )
            made = dict(zip(usable, texts, strict=True))
            for number in numbers:
                yield _candidate(rows[number], made.get(number, ""), refused[number], number)


@torch.no_grad()
def distorted(
    policy: Policy,
    rows: Sequence[tuple[Prompt, Output]],
    *,
    steps: int,
    keys: Sequence[tuple[rng.Key, ...]],
) -> list[str]:
    """The likeliest token at each place of the right answers, behind their own tokens.

    No place is given to an end token or to a picture's, so that the answers keep their length.

    Args:
        policy: A vision-language model.
        rows: Prompts with right answers, at least one token each.
        steps: Of forward diffusion of the pictures.
        keys: Of each row's noise.
    """
    if not rows:
        return []
    adapter, network = require_lvlm(policy), cast(PreTrainedModel, policy.model)
    noise = [partial(with_noise, steps=steps, generator=rng.generator(*key)) for key in keys]
    static = altered_static(adapter, [prompt for prompt, _ in rows], noise)
    answers = [beginning_ids(adapter.tokenizer, text_of_answer(answer)) for _, answer in rows]
    width = max(len(ids) for ids in answers)
    with policy.autocast():
        inputs = adapter.prefill(network, continued(static, answers))
        logits: Tensor = network(
            **inputs, use_cache=False, **last_positions(network, width + 1)
        ).logits
    logits[..., [*adapter.sampling.banned, *adapter.sampling.stop_ids]] = float("-inf")
    likeliest = logits.argmax(-1).cpu()
    # Rows end flush; their last state predicts the end, the one before it their last token.
    return [
        adapter.tokenizer.decode(row[-len(ids) - 1 : -1], skip_special_tokens=True)
        for row, ids in zip(likeliest, answers, strict=True)
    ]


def _candidate(
    row: tuple[Prompt, Output], text: str, refused: str | None, number: int
) -> Candidate:
    prompt, answer = row
    same = text.split() == text_of_answer(answer).split()
    pair = Preference(
        prompt=prompt, chosen=answer, rejected=text, meta={"builder": NAME, "row": number}
    )
    return Candidate(
        preference=pair, row=number, dropped=refused or (NO_DIFFERENCE if same else None)
    )
