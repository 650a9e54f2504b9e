"""The head of a language model as a function of hidden states, read from its layers and config."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmalign.head import Head

SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""Config names of what logits are multiplied by."""
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
"""Config names of what logits, or the states before, are divided by."""
CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Config names of the bound c of ``c tanh(logits / c)``."""
MULTIPLIED = {"hyperclovax"}
"""Families that multiply by what everybody else of that name divides by."""
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference over the largest logit; 1e-4 for wider dtypes."""


def language_head(
    model: PreTrainedModel, *, temperature: float = 1.0, banned: tuple[int, ...] = ()
) -> Head:
    """What lies between the decoder's last states and the step distribution.

    Gradients reach the model's own parameters through the head's weight and bias: those of the
    output layer, or of the LoRA it carries, in use as set by `mmalign.lora`.

    Args:
        model: A model with a language head.
        temperature: Of the step distribution.
        banned: Symbols that have probability 0.

    Raises:
        ValueError: The output layer is of a kind that cannot be read.
    """
    weight, bias = _weight_and_bias(model)
    settings = model.config.get_text_config()
    divide = settings.model_type not in MULTIPLIED
    scale = 1.0
    for name in SCALES:
        scale *= _number(settings, name, 1.0)
    for name in DIVISORS:
        divisor = _number(settings, name, 1.0)
        scale *= 1 / divisor if divide else divisor
    caps = [cap for name in CAPS if (cap := _number(settings, name, 0.0))]
    return Head(
        weight=weight,
        bias=bias,
        temperature=temperature,
        banned=banned,
        scale=scale,
        softcap=caps[0] if caps else None,
    )


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Compare, on four tokens, the logits of `language_head` with the model's own.

    The states are those of ``model.get_decoder()``, which is what answers are scored from.

    Raises:
        ValueError: They differ, so that answers would be scored under another distribution than
            the model's.
    """
    kind, decoder, head = type(model).__name__, model.get_decoder(), language_head(model)
    if not isinstance(decoder, PreTrainedModel):
        raise ValueError(
            f"the decoder of {kind} is {type(decoder).__name__}, not a model; mmalign cannot score "
            "this model"
        )
    ids = _plain_ids(model).unsqueeze(0).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0]
    states = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
    found = _logits(states, head)
    if found.shape != logits.shape:
        raise ValueError(
            f"the output layer of {kind} has {found.shape[1]} symbols and its logits have "
            f"{logits.shape[1]}; mmalign cannot score this model"
        )
    scale = float(logits.abs().max())
    error = float((found - logits).abs().max())
    if not error <= TOLERANCE.get(logits.dtype, 1e-4) * scale:
        raise ValueError(
            f"{kind} does more to its logits than its output layer and config say (they differ by "
            f"{error:.2g}, the largest is {scale:.2g}); mmalign cannot score this model"
        )


def _logits(states: Tensor, head: Head) -> Tensor:
    """``[N, V]`` float32 logits at temperature 1."""
    bias = None if head.bias is None else head.bias.float()
    logits = nn.functional.linear(states.float(), head.weight.float(), bias) * head.scale
    return logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()


def _plain_ids(model: PreTrainedModel) -> Tensor:
    """``[4]`` ids that stand for no picture or other special thing."""
    special = {
        value
        for config in (model.config, model.config.get_text_config())
        for name, value in config.to_dict().items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    plain = (i for i in range(int(model.config.get_text_config().vocab_size)) if i not in special)
    return torch.tensor(list(itertools.islice(plain, 4)))


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


def _weight_and_bias(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    from peft.tuners.lora import Linear as LoRALinear

    layer: Any = model.get_output_embeddings()
    weight_of_lora: Tensor | None = None
    if isinstance(layer, LoRALinear):
        weight_of_lora = _lora_weight(layer, type(model).__name__)
        layer = layer.get_base_layer()
    # A subclass with a forward of its own (quantised weights) computes something else.
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise ValueError(
            f"the output layer of {type(model).__name__} is {type(layer).__name__}; mmalign scores "
            "models whose output layer is an unquantised torch.nn.Linear, or such a layer with LoRA"
        )
    weight = layer.weight if weight_of_lora is None else layer.weight + weight_of_lora
    return weight, layer.bias


def _lora_weight(layer: Any, kind: str) -> Tensor | None:
    """The update ``scaling B A`` of the LoRAs in use, with gradient; None where all are off."""
    if layer.disable_adapters or layer.merged:
        return None
    total: Tensor | None = None
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in layer.lora_variant or layer.lora_bias[name]:
            raise ValueError(
                f"LoRA {name!r} on the output layer of {kind} is of a kind that mmalign cannot "
                "score (DoRA, a bias of its own); leave the output layer out of its target modules"
            )
        update = layer.get_delta_weight(name)
        total = update if total is None else total + update
    return total
