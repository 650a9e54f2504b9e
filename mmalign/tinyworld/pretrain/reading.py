"""A tiny CLIP text tower that has learned to read: which attributes belong to which object.

Real pipelines use text encoders that were trained before; so do these. The tower is taught on
prompts alone to say, at the last word of each phrase, everything the phrase states, and over the
whole prompt what occurs in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mmalign.rng import generator
from mmalign.tinyworld.language import Mention, phrase
from mmalign.tinyworld.pretrain.common import fit, prepare
from mmalign.tinyworld.requirements import Requirement, requirement_from_dict
from mmalign.tinyworld.scenes import COLOURS, PLACES, SHAPES, SIZES
from mmalign.tinyworld.tasks import TASKS
from mmalign.tinyworld.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

SEED = 10
STEPS = 350
BATCH = 96
PROMPTS = 8_000
NUM_LAYERS = 3
MAX_TOKENS = 18
TEXT_SIZE = 64
FIELDS: dict[str, tuple[str | int | None, ...]] = {
    "count": (1, 2, 3, 4),
    "size": (None, *SIZES),
    "colour": (None, *COLOURS),
    "shape": (None, *SHAPES),
    "place": (None, *PLACES),
}
OCCURRING = (*SIZES, *COLOURS, *SHAPES, *PLACES)


def prompt_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's words as a CLIP text encoder wants them.

    As in CLIP, one token ends and pads (here "<pad>"), the text is begun by "<bos>" and padding
    is on the right.
    """
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer()
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = MAX_TOKENS
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <pad>",
        special_tokens=[("<bos>", tokenizer.bos_token_id), ("<pad>", tokenizer.pad_token_id)],
    )
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Token ids ``[B, MAX_TOKENS]``."""
    ids = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS).input_ids
    assert all(len(row) == MAX_TOKENS for row in ids), "a prompt longer than the text encoder reads"
    return torch.tensor(ids)


def build_tower(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModelWithProjection:
    """A fresh tower."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_SIZE,
        intermediate_size=2 * TEXT_SIZE,
        projection_dim=TEXT_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def train_tower(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModelWithProjection:
    """A tower that reads; the same for every model, and frozen from here on.

    Both the last states and those before the last layer are taught, because Stable Diffusion
    reads the former and Stable Diffusion 3 the latter.
    """
    prepare(SEED)
    tower = build_tower(tokenizer)
    width = sum(len(values) for values in FIELDS.values())
    heads = nn.ModuleList([nn.Linear(TEXT_SIZE, width), nn.Linear(TEXT_SIZE, width)])
    summary = nn.Linear(TEXT_SIZE, len(OCCURRING))
    prompts = TASKS["draw"].prompts(split="train", size=PROMPTS, seed=SEED)
    asked = [requirement_from_dict(prompt.meta["requirement"]) for prompt in prompts]
    ids = token_ids(tokenizer, [requirement.text for requirement in asked])
    labels = torch.stack([_labels(requirement) for requirement in asked])
    occurs = torch.stack([_occurs(requirement) for requirement in asked])
    draws = generator(SEED, "reading")

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(ids), (BATCH,), generator=draws)
        read = tower(ids[index], output_hidden_states=True)
        states = (read.last_hidden_state, read.hidden_states[-2])
        losses = [
            _field_loss(head(state), labels[index])
            for head, state in zip(heads, states, strict=True)
        ]
        losses.append(binary_cross_entropy_with_logits(summary(read.text_embeds), occurs[index]))
        return torch.stack(losses).sum()

    parameters = [*tower.parameters(), *heads.parameters(), *summary.parameters()]
    fit(parameters, loss_of, name="reading", steps=STEPS, learning_rate=3e-3)
    return tower.eval().requires_grad_(False)


def _field_loss(logits: Tensor, labels: Tensor) -> Tensor:
    parts = logits.split([len(values) for values in FIELDS.values()], dim=-1)
    each = [
        cross_entropy(part.flatten(0, 1), labels[..., k].flatten()) for k, part in enumerate(parts)
    ]
    return torch.stack(each).sum()


def _labels(requirement: Requirement) -> Tensor:
    """``[MAX_TOKENS, fields]``: classes at the last word of each phrase, -100 elsewhere."""
    labels = torch.full((MAX_TOKENS, len(FIELDS)), -100)
    position = 0
    for number, mention in enumerate(requirement.mentions):
        # One word, a comma or "and", stands between phrases; "<bos>" before the first.
        position += len(phrase(mention).split()) + (number > 0)
        labels[position] = torch.tensor(_classes(mention))
    return labels


def _classes(mention: Mention) -> list[int]:
    return [values.index(getattr(mention, name)) for name, values in FIELDS.items()]


def _occurs(requirement: Requirement) -> Tensor:
    said = {getattr(m, name) for m in requirement.mentions for name in FIELDS}
    return torch.tensor([float(word in said) for word in OCCURRING])
