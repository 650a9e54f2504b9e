"""Answers with hallucinations in them, from the model's own expectations.

Up to N times: the picture is hidden or noised, the right answer is cut in every sentence, the model
goes on from each cut, and the result stays unless it says too much the same as the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign import rng
from mmalign.policy import Policy
from mmalign.types import Output, Prompt
from mmalign.vision.bdhs.pieces import FULL_STOP, Piece, cut
from mmalign.vision.bdhs.similarity import MPNET, require_similarity, similarity_of
from mmalign.vision.completing import Alter, Completed, Decoding, Pixels, complete
from mmalign.vision.corruption import attended, with_noise
from mmalign.vision.lvlm import LVLMAdapter

NO_ANSWER = "no answer"
NO_PICTURE = "no picture"
CUT_SHORT = "cut short"
NO_DIFFERENCE = "no difference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How rejected answers are made.

    Attributes:
        corruption: ``mask`` hides picture tokens in attention; ``noise`` adds noise to the pixels,
            as the processor normalised them.
        mask_threshold: Expected share of hidden picture tokens, 0 to 1; the paper studies 0.98,
            0.99 and 1.
        noise_steps: Steps of forward diffusion, see `mmalign.vision.corruption.alpha_bar`.
        similarity: ``words``, ``minilm``, or the name of a sentence encoder; see
            `mmalign.vision.bdhs.similarity.similarity_of`.
        max_similarity: A rejected answer stays if it is less like the right one than this.
        tries: How often at most. The last of several is unguided: the model writes the whole answer
            and it stays whatever its similarity.
        mark: What ends a piece of the answer; None for sentences, each completed up to the first
            full stop.
        decoding: How the model goes on; the mark is its stop string. The paper does not say at
            which temperature.
        batch_size: Pieces completed at a time.

    References:
        2407.02477.
    """

    corruption: Literal["mask", "noise"] = "mask"
    mask_threshold: float = 0.99
    noise_steps: int = 500
    similarity: str = MPNET
    max_similarity: float = 0.97
    tries: int = 5
    mark: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold <= 1:
            raise ValueError(f"mask_threshold must be 0 to 1; got {self.mask_threshold}")
        for name in ("noise_steps", "tries", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.mark is not None and not self.mark.strip():
            raise ValueError("mark must be more than white space; leave it unset for sentences")
        if self.decoding.stop:
            raise ValueError(
                f"decoding.stop={list(self.decoding.stop)} has no meaning here: `mark` says where "
                "a piece ends"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hallucinated:
    """What came of one right answer.

    Attributes:
        text: The rejected answer; "" where there is none.
        tries: How often it was tried; 0 where it could not be.
        similarity: To the right answer.
        accepted: Whether it is of use, and less like the right answer than the recipe's bound.
        guided: Whether it was made from pieces of the right answer.
        dropped: Why it is of no use, or None.
    """

    text: str
    tries: int
    similarity: float
    accepted: bool
    guided: bool
    dropped: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A right answer that still needs a rejected one.

    Attributes:
        prompt: What was asked.
        answer: The right answer.
        key: Of all its draws.
    """

    prompt: Prompt
    answer: str
    key: tuple[rng.Key, ...]


def hallucinate(
    policy: Policy,
    rows: Sequence[tuple[Prompt, Output]],
    recipe: Recipe,
    *,
    keys: Sequence[tuple[rng.Key, ...]],
) -> list[Hallucinated]:
    """Rejected answers to prompts with right ones; what a row gives depends on no other row.

    Args:
        policy: Writes them; its adapter is a vision-language model's.
        rows: Prompts, each with the right answer.
        recipe: How.
        keys: Of the draws of each row, see `mmalign.rng`.

    Raises:
        ValueError: The policy sees no pictures, or an answer is no text.
    """
    require_lvlm(policy)
    found: dict[int, Hallucinated] = {}
    tasks: dict[int, _Task] = {}
    for number, ((prompt, answer), key) in enumerate(zip(rows, keys, strict=True)):
        right = text_of_answer(answer)
        refused = refusal(prompt, right)
        if refused is not None:
            found[number] = _refused(refused)
            continue
        tasks[number] = _Task(prompt=prompt, answer=right, key=key)
    similar = similarity_of(recipe.similarity)
    for attempt in range(1, recipe.tries + 1):
        left = {number: task for number, task in tasks.items() if number not in found}
        if not left:
            break
        last = attempt == recipe.tries
        guided = not last or recipe.tries == 1
        made = _tried(policy, list(left.values()), recipe, attempt=attempt, guided=guided)
        alike = similar([task.answer for task in left.values()], [text for text, _ in made])
        for number, (text, ended), likeness in zip(left, made, alike, strict=True):
            dropped = _useless(text, left[number].answer, ended=ended)
            accepted = dropped is None and likeness < recipe.max_similarity
            if accepted or last:
                found[number] = Hallucinated(
                    text=text,
                    tries=attempt,
                    similarity=likeness,
                    accepted=accepted,
                    guided=guided,
                    dropped=dropped,
                )
    return [found[number] for number in range(len(rows))]


def require_means(policy: Policy, recipe: Recipe) -> None:
    """Refuse a policy, or a similarity, that would fail in the middle of the work.

    Raises:
        ValueError: The policy sees no pictures, or the sentence encoder cannot be loaded.
    """
    require_lvlm(policy)
    require_similarity(recipe.similarity)


def require_lvlm(policy: Policy) -> LVLMAdapter:
    """The policy's adapter.

    Raises:
        ValueError: It is not that of a vision-language model.
    """
    if not isinstance(policy.adapter, LVLMAdapter):
        raise ValueError(
            f"{type(policy.adapter).__name__} looks at no pictures that could be hidden from it; "
            "use a policy of `type: lvlm`"
        )
    return policy.adapter


def text_of_answer(answer: Output) -> str:
    """The answer.

    Raises:
        ValueError: It is a picture.
    """
    if not isinstance(answer, str):
        raise ValueError(
            f"an answer is a {type(answer).__name__}, and only texts can be hallucinated; use data "
            "whose right outputs are answers"
        )
    return answer


def refusal(prompt: Prompt, answer: str) -> str | None:
    """Why no rejected answer can be made; None where one can."""
    if not answer.strip():
        return NO_ANSWER
    return None if prompt.images else NO_PICTURE


def _refused(reason: str) -> Hallucinated:
    return Hallucinated(
        text="", tries=0, similarity=0.0, accepted=False, guided=False, dropped=reason
    )


def _useless(text: str, answer: str, *, ended: bool) -> str | None:
    if not text.strip():
        return NO_ANSWER
    if not ended:
        return CUT_SHORT
    return NO_DIFFERENCE if text.split() == answer.split() else None


def _tried(
    policy: Policy, tasks: Sequence[_Task], recipe: Recipe, *, attempt: int, guided: bool
) -> list[tuple[str, bool]]:
    """One try for every task, all pieces of all of them side by side: texts, and if they ended."""
    plans: list[list[Piece]] = []
    jobs: list[tuple[int, int]] = []
    for number, task in enumerate(tasks):
        draw = rng.generator(*task.key, attempt, "cut")
        plans.append(cut(task.answer, recipe.mark, generator=draw) if guided else [_everything()])
        jobs += [(number, k) for k, piece in enumerate(plans[-1]) if not piece.complete]
    mark = recipe.mark or FULL_STOP
    # One mask or one noise for a row, whatever piece of it the model is at.
    sight = [(*task.key, attempt, "picture") for task in tasks]
    visible: list[Tensor] | None = None
    altered: list[Alter] | None = None
    if recipe.corruption == "mask":
        shown = [_shown(policy, t, recipe, key) for t, key in zip(tasks, sight, strict=True)]
        visible = [shown[number] for number, _ in jobs]
    else:
        altered = [partial(_noised, steps=recipe.noise_steps, key=sight[n]) for n, _ in jobs]
    made = complete(
        policy,
        [tasks[number].prompt for number, _ in jobs],
        decoding=replace(recipe.decoding, stop=(mark,) if guided else ()),
        generators=[rng.generator(*tasks[n].key, attempt, "text", k) for n, k in jobs],
        beginnings=[plans[number][k].beginning for number, k in jobs],
        visible=visible,
        altered=altered,
        batch_size=recipe.batch_size,
    )
    written = dict(zip(jobs, made, strict=True))
    return [_joined(plan, number, written, mark) for number, plan in enumerate(plans)]


def _everything() -> Piece:
    """The piece of an unguided try: nothing is given."""
    return Piece(context="", prefix="", lead="", ending=None, complete=False)


def _joined(
    plan: Sequence[Piece], number: int, written: dict[tuple[int, int], Completed], mark: str
) -> tuple[str, bool]:
    """The answer of the task ``number``, and whether every piece of it came to an end."""
    parts, ended = [], True
    for k, piece in enumerate(plan):
        one = written.get((number, k))
        completion = "" if one is None else one.text
        parts.append(piece.with_completion(completion, mark=mark))
        ended = ended and (one is None or one.ended)
    return "".join(parts).strip(), ended


def _shown(policy: Policy, task: _Task, recipe: Recipe, key: tuple[rng.Key, ...]) -> Tensor:
    """``[L]`` bool: the tokens of the task's prompt, and those of its pictures that stay."""
    adapter = require_lvlm(policy)
    (ids,) = adapter.static_of([task.prompt])["prompt_ids"]
    pictures = torch.isin(ids, torch.tensor(adapter.sampling.banned))
    visible = torch.ones_like(pictures)
    visible[pictures] = attended(
        int(pictures.sum()), recipe.mask_threshold, generator=rng.generator(*key)
    )
    return visible


def _noised(per_image: Pixels, *, steps: int, key: tuple[rng.Key, ...]) -> dict[str, Tensor]:
    return with_noise(per_image, steps, generator=rng.generator(*key))
