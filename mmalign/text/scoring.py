"""Scoring answers: one forward pass, logits at the answer's positions alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mmalign.protocols import Want
from mmalign.text.generation import Sampling
from mmalign.tokens import head_scores, masked, step_logits
from mmalign.types import Scores


def score_rows(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    tokens: Tensor,
    mask: Tensor,
    *,
    sampling: Sampling,
    want: Want = frozenset(),
    against: nn.Module | None = None,
) -> Scores:
    """Log-probs of answers, and what else is wanted.

    Args:
        model: Any model with a language head.
        inputs: What its forward takes: rows of ``L + T - 1`` ids from `rows.side_by_side`, whose
            last T positions predict the T answer columns, and further keys.
        tokens: ``[B, T]`` int64, the answers.
        mask: ``[B, T]`` bool, what is scored.
        sampling: Temperature and banned ids, the same as in generation.
        want: Further fields of `Scores`.
        against: The reference, where ``"kl"`` is wanted; it gets the same inputs and no gradient.
    """
    steps = tokens.shape[1]
    with recomputing(model):
        logits, features = _logits(model, inputs, steps, sampling, with_features="features" in want)
    reference = None
    if "kl" in want and against is not None:
        with torch.no_grad():
            reference, _ = _logits(against, inputs, steps, sampling, with_features=False)
    found = head_scores(logits, tokens, want=want, against=reference)
    if features is not None:
        found["features"] = features.float()
    return Scores(**masked(found, mask))


def padded_steps(scores: Scores, width: int) -> Scores:
    """The same scores with zero columns up to ``width`` steps."""
    missing = width - scores.log_probs.shape[1]
    if missing == 0:
        return scores
    grown = {}
    for name in scores.__slots__:
        value = getattr(scores, name)
        if value is not None:
            filler = value.new_zeros(value.shape[0], missing, *value.shape[2:])
            grown[name] = torch.cat([value, filler], 1)
    return Scores(**grown)


def _logits(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    steps: int,
    sampling: Sampling,
    *,
    with_features: bool,
) -> tuple[Tensor, Tensor | None]:
    """``[B, T, V]`` logits of the step distributions, and the ``[B, T, F]`` states behind them."""
    options: dict[str, object] = {"use_cache": False, "output_hidden_states": with_features}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = steps
    output = model(**inputs, **options)
    logits = step_logits(
        output.logits[:, -steps:], temperature=sampling.temperature, banned=sampling.banned
    )
    return logits, output.hidden_states[-1][:, -steps:] if with_features else None


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
