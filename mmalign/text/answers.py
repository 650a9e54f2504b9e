"""Scoring answers: one forward pass of the decoder, and the head where a token is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mmalign.contrast import contrast_log_probs
from mmalign.head import Head, head_scores
from mmalign.pieces import extents
from mmalign.protocols import AGAINST, Want
from mmalign.text.packing import Rows, packed, side_by_side
from mmalign.text.shared import shares_prompts, worth_sharing
from mmalign.types import Scores, Trajectory

Sharing = bool | None
"""Whether a shared prompt runs once: always, never, or (None) where it saves work."""


def laid_out(
    prompts: Sequence[Tensor],
    positions: Sequence[Tensor],
    prompt_of: Sequence[int],
    tokens: Tensor,
    mask: Tensor,
    *,
    decoder: PreTrainedModel,
    share: Sharing,
) -> Rows:
    """The rows of one forward pass: packed where that is wished for, possible and worth it.

    Args:
        prompts: P ragged ``[L_i]`` int64.
        positions: Of each prompt's tokens, ``[L_i]`` or ``[A, L_i]``.
        prompt_of: B prompt numbers.
        tokens: ``[B, T]`` int64, the answers.
        mask: ``[B, T]`` bool, what is scored.
        decoder: Able to take packed rows or not.
        share: Whether a shared prompt runs once.
    """
    able = share is not False and shares_prompts(decoder)
    if able and share is None:
        lengths = [len(ids) for ids in prompts]
        able = worth_sharing(lengths, prompt_of, extents(mask).tolist())
    return (packed if able else side_by_side)(prompts, positions, prompt_of, tokens, mask)


def decoder_states(network: PreTrainedModel, rows: Rows, inputs: Mapping[str, Tensor]) -> Tensor:
    """``[M, F]`` hidden states that the scored tokens are predicted from, row by row.

    Args:
        network: A model with a language head.
        rows: The layout.
        inputs: ``input_ids``, or ``inputs_embeds``, of the rows.
    """
    with recomputing(network):
        states = network.get_decoder()(**inputs, **rows.settings()).last_hidden_state
    return rows.predicting(states)


def answered(trajectory: Trajectory, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and mask ``[B, T']`` of the rows, without the columns that no row reaches."""
    used = trajectory.mask.any(0).nonzero()
    width = int(used.max()) + 1 if len(used) else 1
    tokens = trajectory.stepwise["token"][:, :width].to(device)
    return tokens, trajectory.mask[:, :width].to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a network says before each of the M scored tokens, row by row.

    Attributes:
        states: ``[M, D]`` what the head reads.
        head: The language model's.
        features: ``[M, F]`` what `Scores.features` is to hold; None for ``states``.
    """

    states: Tensor
    head: Head
    features: Tensor | None = None


def scored(
    read: Callable[[nn.Module, Trajectory], Read],
    model: nn.Module,
    trajectory: Trajectory,
    *,
    want: Want,
    against: nn.Module | None,
) -> Scores:
    """What the head says of the scored tokens, laid back into rows.

    Args:
        read: Has a network read prompts and answers.
        model: The network that is asked.
        trajectory: B rows of T steps with M scored ones.
        want: Further fields of `Scores`.
        against: The reference's network, read without a gradient where a KL is wanted.

    Returns:
        ``[B, T]`` float32 under every field asked for; 0, without gradient, where masked.
    """
    own, other = read(model, trajectory), None
    if want & AGAINST and against is not None:
        with torch.no_grad():
            reference = read(against, trajectory)
        other = (reference.states, reference.head)
    mask = trajectory.mask.to(own.states.device)
    tokens = trajectory.stepwise["token"].to(own.states.device)[mask]
    found = head_scores(own.states, tokens, own.head, want=want - {"features"}, against=other)
    if "features" in want:
        found["features"] = (own.states if own.features is None else own.features).float()
    return Scores(**{name: _laid_back(value, mask) for name, value in found.items()})


@torch.no_grad()
def contrasted(
    read: Callable[[nn.Module, Trajectory], Read],
    model: nn.Module,
    trajectory: Trajectory,
    *,
    against: nn.Module,
    strength: float,
) -> Tensor:
    """``[B, T]`` log-probs under the contrast of two networks: `mmalign.protocols.Contrasting`."""
    own, other = read(model, trajectory), read(against, trajectory)
    mask = trajectory.mask.to(own.states.device)
    found = contrast_log_probs(
        own.states,
        trajectory.stepwise["token"].to(mask.device)[mask],
        own.head,
        against=(other.states, other.head),
        strength=strength,
    )
    return _laid_back(found, mask)


def _laid_back(values: Tensor, mask: Tensor) -> Tensor:
    """``[M, ...]`` values at the True places of ``[B, T]``, zeros elsewhere."""
    rows = values.new_zeros(*mask.shape, *values.shape[1:])
    rows[mask] = values
    return rows


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Within, gradient checkpointing works though the model is in eval mode.

    transformers recomputes activations only in layers whose own flag says training. The flag is
    raised on those layers alone: their dropout modules stay in eval mode, so scoring stays a
    deterministic function.
    """
    layers = [
        m
        for m in model.modules()
        if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing
    ]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.training = value
