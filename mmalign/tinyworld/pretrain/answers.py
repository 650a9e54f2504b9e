"""Teaching a tiny language model to answer: rows of ids, the loss on answers, the judged score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from mmalign.types import Message

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Right-padded rows.

    Attributes:
        ids: ``[B, L]`` int64.
        attention_mask: ``[B, L]``, 1 on real tokens.
        labels: ``[B, L]`` int64, the ids of the answers and `IGNORED` elsewhere.
    """

    ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def turn(role: str, content: object) -> Message:
    """One message of a conversation."""
    return {"role": role, "content": content}


def tokenise(
    tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Message], *, image_tokens: int = 0
) -> tuple[list[int], list[bool]]:
    """The ids of a whole conversation, and which of them the assistant says (with its ``<eos>``).

    Args:
        tokenizer: The tiny world's.
        conversation: Turns of user and assistant.
        image_tokens: How many ``<image>`` tokens stand for one picture.
    """
    found = tokenizer.apply_chat_template(
        list(conversation), return_dict=True, return_assistant_tokens_mask=True
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids: list[int] = []
    said: list[bool] = []
    for token, spoken in zip(found["input_ids"], found["assistant_masks"], strict=True):
        copies = image_tokens if token == image else 1
        ids += [token] * copies
        said += [bool(spoken)] * copies
    return ids, said


def rows(parts: Sequence[tuple[list[int], list[bool]]], *, pad: int) -> Rows:
    """Conversations from `tokenise` as one batch."""
    length = max(len(ids) for ids, _ in parts)
    ids = torch.full((len(parts), length), pad)
    mask = torch.zeros(len(parts), length, dtype=torch.int64)
    labels = torch.full((len(parts), length), IGNORED)
    for row, (tokens, said) in enumerate(parts):
        values = torch.tensor(tokens)
        ids[row, : len(tokens)] = values
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.where(torch.tensor(said), values, IGNORED)
    return Rows(ids=ids, attention_mask=mask, labels=labels)


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens, nats; logits at t - 1 predict t."""
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
