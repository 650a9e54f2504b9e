"""Answers, and continuations of answers, as builders of preference data need them.

Where `Policy.sample` draws from the distribution that is scored, `complete` draws as a builder
says: the likeliest tokens, up to a full stop, from the middle of an answer, with a part of the
prompt out of sight or with altered pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmalign.policy import Policy
from mmalign.text.generation import Drawn, Sampling, draw_uniforms, generate
from mmalign.text.rows import left_padded, positions_of
from mmalign.tokens import narrowed
from mmalign.types import Prompt
from mmalign.vision.features import picture_keys
from mmalign.vision.lvlm import LVLMAdapter

Pixels: TypeAlias = Mapping[str, Tensor]
"""What a processor made of the pictures of a prompt; see `mmalign.vision.lvlm_inputs.Processed`."""
Alter: TypeAlias = Callable[[Pixels], Pixels]
"""A change of a prompt's pictures after their processor, which keeps keys and shapes."""


@runtime_checkable
class Answering(Protocol):
    """An adapter whose models read a prompt and go on with text."""

    sampling: Sampling
    tokenizer: PreTrainedTokenizerBase

    def static_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """The ids of prompts, and what else is read of them."""
        ...

    def prefill(self, network: PreTrainedModel, static: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a network reads of every prompt before it draws."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a completion is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_k: Only so many of the likeliest tokens can be drawn; None for all.
        top_p: Then only the likeliest that together have this probability; None for all.
        max_new_tokens: Longest completion in tokens, its end token included.
        stop: Strings that end a completion, beside the model's own end; kept at its end.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0; got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, or unset for all; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if "" in self.stop:
            raise ValueError("stop holds an empty string, which would end everything at once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """What was written.

    Attributes:
        text: The new text alone, without special tokens; up to the stop string, where one came.
        tokens: ``[T]`` int64, all that was drawn, an end token included.
        ended: Whether it came to its end, by an end token or a stop string; False where it was cut
            at ``max_new_tokens``.
    """

    text: str
    tokens: Tensor
    ended: bool


def complete(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
    beginnings: Sequence[str] | None = None,
    visible: Sequence[Tensor] | None = None,
    altered: Sequence[Alter] | None = None,
    batch_size: int = 16,
) -> list[Completed]:
    """One completion of each prompt; what a row gives depends on no other row.

    Args:
        policy: Its adapter answers in text. Its own sampling settings give the end tokens and the
            tokens that are never drawn; temperature and length are those of ``decoding``.
        prompts: A prompt that stands here several times, as the same object, is processed once a
            batch.
        decoding: How to draw.
        generators: One for each prompt.
        beginnings: What has been written of each answer, tokenised as a recorded answer is, without
            end; "" for nothing. A tokenizer that joins a space to the word behind it wants no space
            at the end of a beginning.
        visible: ``[L_i]`` bool for the tokens of each prompt; False is masked in attention. No
            position moves.
        altered: A change of each prompt's pictures, after the processor.
        batch_size: Prompts in one forward pass.

    Raises:
        ValueError: The adapter does not answer in text, the arguments do not fit together, or a
            prompt is refused by the adapter.
    """
    adapter = policy.adapter
    if not isinstance(adapter, Answering):
        raise ValueError(
            f"{type(adapter).__name__} does not write text, so there is nothing to complete; use a "
            "policy of `type: lvlm` or `type: text`"
        )
    size = len(prompts)
    for name, given in (
        ("generators", generators),
        ("beginnings", beginnings),
        ("visible", visible),
        ("altered", altered),
    ):
        if given is not None and len(given) != size:
            raise ValueError(f"there are {size} prompts and {len(given)} {name}")
    found: list[Completed] = []
    for start in range(0, size, batch_size):
        rows = slice(start, start + batch_size)
        static = altered_static(adapter, prompts[rows], None if altered is None else altered[rows])
        texts = [""] * len(prompts[rows]) if beginnings is None else beginnings[rows]
        shown = None if visible is None else visible[rows]
        found += _completed(
            policy,
            static,
            texts,
            visible=shown,
            decoding=decoding,
            generators=generators[rows],
        )
    return found


def beginning_ids(tokenizer: PreTrainedTokenizerBase, beginning: str) -> list[int]:
    """The ids of the beginning of an answer: as those of a recorded answer, without an end."""
    return list(tokenizer(beginning, add_special_tokens=False)["input_ids"])


def continued(
    static: Mapping[str, list[Any]], beginnings: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The static part of prompts, each with the ids of the beginning of its answer behind it."""
    ids = [
        torch.cat([prompt, prompt.new_tensor(list(begun))])
        for prompt, begun in zip(static["prompt_ids"], beginnings, strict=True)
    ]
    found = {**static, "prompt_ids": ids}
    if "per_token" in static:
        # 0 is what a token that belongs to no picture has.
        found["per_token"] = [
            {key: functional.pad(value, (0, len(begun))) for key, value in one.items()}
            for one, begun in zip(static["per_token"], beginnings, strict=True)
        ]
    return found


def altered_static(
    adapter: Answering, prompts: Sequence[Prompt], altered: Sequence[Alter] | None
) -> dict[str, list[Any]]:
    """What is read of each prompt, its pictures changed; see `complete`.

    Raises:
        ValueError: The adapter refuses a prompt, or sees no pictures.
    """
    distinct = {id(prompt): prompt for prompt in prompts}
    once = adapter.static_of(list(distinct.values()))
    place = {key: number for number, key in enumerate(distinct)}
    rows = [place[id(prompt)] for prompt in prompts]
    static = {key: [values[row] for row in rows] for key, values in once.items()}
    if altered is None:
        return static
    if not isinstance(adapter, LVLMAdapter):
        raise ValueError(f"{type(adapter).__name__} sees no pictures that could be altered")
    static["per_image"] = [
        _checked(pixels, alter(pixels)) if pixels else pixels
        for pixels, alter in zip(static["per_image"], altered, strict=True)
    ]
    if adapter.family is not None:
        static["image_keys"] = [picture_keys(p, adapter.family) for p in static["per_image"]]
    return static


def _checked(before: Pixels, after: Pixels) -> dict[str, Tensor]:
    """What pictures became, in the form that they had."""
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    return dict(after)


def _completed(
    policy: Policy,
    static: Mapping[str, list[Any]],
    beginnings: Sequence[str],
    *,
    visible: Sequence[Tensor] | None,
    decoding: Decoding,
    generators: Sequence[torch.Generator],
) -> list[Completed]:
    """One batch."""
    network, adapter = cast(PreTrainedModel, policy.model), policy.adapter
    assert isinstance(adapter, Answering)
    begun = [beginning_ids(adapter.tokenizer, text) for text in beginnings]
    before = [_text(adapter.tokenizer, ids) for ids in begun]
    whole = continued(static, begun)

    def written(row: int, tokens: Sequence[int]) -> str:
        text = _text(adapter.tokenizer, [*begun[row], *tokens])
        if not text.startswith(before[row]):
            raise ValueError(
                f"the tokenizer spells {before[row]!r} anew when it is continued ({text!r}); begin "
                "the answer at another place"
            )
        return text[len(before[row]) :]

    def over(answers: Tensor, tokens: Tensor) -> Tensor:
        texts = map(written, answers.tolist(), tokens.tolist())
        return torch.tensor([_stop(text, decoding.stop) is not None for text in texts])

    with torch.no_grad(), policy.autocast():
        inputs = adapter.prefill(network, whole)
        if visible is not None:
            inputs = _masked(inputs, static["prompt_ids"], begun, visible)
        drawn = generate(
            network,
            inputs,
            draw_uniforms(generators, group_size=1, num_steps=decoding.max_new_tokens),
            _sampling(adapter.sampling, decoding),
            narrow=_narrow(decoding),
            over=over if decoding.stop else None,
        )
    return [_row(drawn, row, partial(written, row), adapter, decoding) for row in range(len(begun))]


def _row(
    drawn: Drawn,
    row: int,
    written: Callable[[Sequence[int]], str],
    adapter: Answering,
    decoding: Decoding,
) -> Completed:
    tokens = drawn.tokens[row][drawn.mask[row]]
    text = written(tokens.tolist())
    end = _stop(text, decoding.stop)
    return Completed(
        text=text[:end],
        tokens=tokens,
        ended=end is not None or int(tokens[-1]) in adapter.sampling.stop_ids,
    )


def _masked(
    inputs: Mapping[str, Tensor],
    ids: Sequence[Tensor],
    begun: Sequence[Sequence[int]],
    visible: Sequence[Tensor],
) -> dict[str, Tensor]:
    """The inputs with some tokens of the prompts out of sight, at the positions that they had."""
    for row, (shown, prompt) in enumerate(zip(visible, ids, strict=True)):
        if shown.shape != prompt.shape:
            raise ValueError(
                f"visible of prompt {row} has shape {list(shown.shape)}, and the prompt has "
                f"{len(prompt)} tokens"
            )
    mask = inputs["attention_mask"]
    rows = [
        torch.cat([shown.to(mask), mask.new_ones(len(more))])
        for shown, more in zip(visible, begun, strict=True)
    ]
    return {"position_ids": positions_of(mask), **inputs, "attention_mask": left_padded(rows)}


def _sampling(sampling: Sampling, decoding: Decoding) -> Sampling:
    return replace(
        sampling,
        temperature=decoding.temperature or 1.0,
        max_new_tokens=decoding.max_new_tokens,
    )


def _narrow(decoding: Decoding) -> Callable[[Tensor], Tensor] | None:
    if decoding.temperature == 0:
        return partial(narrowed, top_k=1)
    if decoding.top_k is None and decoding.top_p is None:
        return None
    return partial(narrowed, top_k=decoding.top_k, top_p=decoding.top_p)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text that keeps its spaces: tidying them would spell a beginning anew."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string of a text ends; None where there is none."""
    ends = [text.find(mark) + len(mark) for mark in stop if mark in text]
    return min(ends, default=None)
