"""A prompt shared by several answers goes through a decoder once, in training as in sampling.

All prompts and answers of a forward pass stand in one row without padding: each prompt once, its
answers behind it. Linear layers neither know nor care; only attention must keep the answers apart:

    prompt            sees itself, causally
    answer            sees its whole prompt, and itself causally; no other answer

Each of these is a call of scaled dot-product attention on slices of the row, so that nothing is
computed that is thrown away, no ``[N, N]`` mask exists, and CPUs and GPUs run the same code. What
comes out is exactly what the rows on their own would give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mmalign.text.last_layer import narrow_last_layer
from mmalign.text.layout import LAYOUT, Layout, Segment

logger = logging.getLogger(__name__)

NAME = "mmalign_shared_prompts"
CAUSAL_LAYERS = {"full_attention", "sliding_attention"}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF_TOLERANCE = 5e-2


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' layers call it: sdpa, but over segments where there is a layout.

    Args:
        module: The attention layer.
        query: ``[1, H, N, D]``.
        key: ``[1, H_kv, N, D]``.
        value: ``[1, H_kv, N, D]``.
        attention_mask: Used where there is no layout.
        settings: ``scaling``, ``sliding_window`` and what else a layer passes.

    Returns:
        ``[1, N, H, D]``, and None for the attention weights.
    """
    layout: Layout | None = settings.pop(LAYOUT, None)
    if layout is None:
        # A layout that got lost on its way here must not turn into attention to everything.
        assert attention_mask is None or attention_mask.numel() > 0, "the layout did not arrive"
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **settings
        )
        return found
    for name in ("softcap", "s_aux", "position_bias"):
        assert settings.get(name) is None, f"{type(module).__name__} attends with {name}"
    window = settings.get("sliding_window")
    # One split, whose gradient is one concatenation; a slice's would be a row full of zeros each.
    queries, keys, values = (iter(x.split(layout.lengths, 2)) for x in (query, key, value))
    parts = []
    for segment in layout.segments:
        asked, key_of_prompt, value_of_prompt = next(queries), next(keys), next(values)
        length = segment.end - segment.start
        left_out = length - 1 if layout.is_last else 0
        if left_out:
            parts.append(torch.zeros_like(asked[:, :, :left_out]))
            asked = asked[:, :, left_out:]
        parts.append(_attend(asked, key_of_prompt, value_of_prompt, left_out, window, settings))
        for _ in segment.answers:
            seen = torch.cat([key_of_prompt, next(keys)], 2)
            read = torch.cat([value_of_prompt, next(values)], 2)
            parts.append(_attend(next(queries), seen, read, length, window, settings))
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: int,
    window: int | None,
    settings: Mapping[str, Any],
) -> Tensor:
    """Causal attention of the last queries of a sequence, ``before`` keys standing before them."""
    length = key.shape[2]
    windowed = window is not None and length > window
    mask = None
    if before or windowed:
        mask = _visible(length - before, before, window if windowed else None, query.device)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=settings.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )


@lru_cache(maxsize=64)
def _visible(queries: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """``[R, before + R]`` bool: what each of the last R positions may see."""
    at = torch.arange(before, before + queries, device=device).unsqueeze(1)
    seen = torch.arange(before + queries, device=device)
    allowed = seen <= at
    return allowed if window is None else allowed & (at - seen < window)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def no_mask(device: torch.device) -> Tensor:
    """What is passed as the mask with a layout: transformers then builds none of its own."""
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def shares_prompts(decoder: PreTrainedModel) -> bool:
    """Whether `share_prompts` succeeded on this decoder."""
    return bool(decoder.config._attn_implementation == NAME)


def share_prompts(decoder: PreTrainedModel) -> bool:
    """Make a decoder able to take packed rows; without a layout it works as before.

    Args:
        decoder: The part of a model that holds the layers (``model.get_decoder()``).

    Returns:
        Whether it can; where it cannot, the log says why, and prompts are repeated for each answer.
    """
    if shares_prompts(decoder):
        return True
    reason = _obstacle(decoder)
    if reason is None:
        decoder.config._attn_implementation = NAME
        reason = _difference(decoder)
        if reason is not None:
            decoder.config._attn_implementation = "sdpa"
    if reason is None:
        _narrow(decoder)
    else:
        logger.warning(
            "%s: prompts are repeated for each answer in scoring, since %s",
            type(decoder).__name__, reason,
        )  # fmt: skip
    return reason is None


def _narrow(decoder: PreTrainedModel) -> None:
    """Leave out of the last layer what is not read, if the answers stay what they are."""
    handles = narrow_last_layer(decoder)
    reason = _difference(decoder) if handles else None
    if reason is not None:
        for handle in handles:
            handle.remove()
        logger.warning(
            "%s: its last layer runs on every token of a prompt, since with the last alone %s",
            type(decoder).__name__, reason,
        )  # fmt: skip


def _obstacle(decoder: PreTrainedModel) -> str | None:
    config = decoder.config
    if not decoder._supports_attention_backend:
        return "its attention cannot be replaced"
    if config._attn_implementation != "sdpa":
        return f"it attends by {config._attn_implementation!r}, not by 'sdpa'"
    others = set(getattr(config, "layer_types", None) or ()) - CAUSAL_LAYERS
    if others:
        return f"it has layers of type {', '.join(sorted(others))}"
    return None


@torch.no_grad()
def _difference(decoder: PreTrainedModel) -> str | None:
    """Whether packed rows give what rows on their own give: two answers of three tokens each."""
    device = decoder.device
    ids = torch.arange(1, 12, device=device) % int(decoder.config.vocab_size)
    prompt, first, second = ids[:5], ids[5:8], ids[8:]
    positions = torch.arange(8, device=device)
    plain = torch.cat(
        [
            decoder(
                input_ids=torch.cat([prompt, answer]).unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                use_cache=False,
            ).last_hidden_state[0, 4:]
            for answer in (first, second)
        ]
    )
    segment = Segment(start=0, end=5, answers=((5, 8), (8, 11)))
    layout = Layout(segments=(segment,), read=torch.arange(4, 11, device=device))
    packed = decoder(
        input_ids=ids.unsqueeze(0),
        position_ids=torch.cat([positions, positions[5:]]).unsqueeze(0),
        attention_mask=no_mask(device),
        use_cache=False,
        **{LAYOUT: layout},
    ).last_hidden_state[0]
    found = packed[[4, 5, 6, 7, 4, 8, 9, 10]]
    scale = float(plain.float().abs().max())
    error = float((found - plain).float().abs().max())
    if error <= TOLERANCE.get(plain.dtype, HALF_TOLERANCE) * scale:
        return None
    return f"it then answers otherwise (by {error:.1e}, where the largest state is {scale:.1e})"


def worth_sharing(prompts: Sequence[int], prompt_of: Sequence[int], answers: Sequence[int]) -> bool:
    """Whether packing saves more than it costs.

    Rows side by side cost ``B (max P + max R)`` positions, packed ones ``sum P + sum R``; packing
    is worth it above a ratio of 1.15, below which its smaller attention calls may eat the gain.

    Args:
        prompts: Length of each prompt.
        prompt_of: The prompt of each row.
        answers: Length of each row's answer.
    """
    rows = len(answers) * (max(prompts[i] for i in prompt_of) + max(answers))
    packed = sum(prompts[i] for i in set(prompt_of)) + sum(answers)
    return rows > 1.15 * packed
