"""LoRA, in one place, through peft.

The layers are injected into the module, which keeps its class: the adapters of every modality, the
libraries' own generation code and `save_pretrained` therefore see the model they know. A model may
carry several named LoRAs; the one being trained and the one that serves as a reference are told
apart by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

DEFAULT_NAME = "policy"
Factors = tuple[Tensor, Tensor]
"""``[out, r]`` and ``[r, in]``: a LoRA adds their product to a weight; the first has its scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRA:
    """Low-rank adaptation of the policy's linear layers.

    Attributes:
        rank: Rank r of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Must be 0 where scores have to be reproducible, which is the default everywhere.
        target_modules: ``"all-linear"``, a regular expression on module names, or name suffixes.
        name: The name the LoRA is trained, saved and referred to under.
        path: A folder in peft's layout to start from (an SFT LoRA), or None for a fresh one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    name: str = DEFAULT_NAME
    path: str | None = None


def attach(model: nn.Module, lora: LoRA, *, targets: str | tuple[str, ...] | None = None) -> None:
    """Freeze ``model`` and inject a trainable LoRA.

    Args:
        model: Any torch module with linear layers.
        lora: What to inject.
        targets: What ``"all-linear"`` means for this model, where the model has parts that must
            stay untouched (a vision tower); peft's own meaning otherwise.

    Raises:
        ValueError: The target names match no layer, or the name is taken.
    """
    from peft import LoraConfig

    if lora.name in names(model):
        raise ValueError(f"the model already carries a LoRA named {lora.name!r}; rename this one")
    if lora.path is not None:
        load(model, lora.path, name=lora.name, trainable=True)
        return
    chosen = targets if lora.target_modules == "all-linear" and targets else lora.target_modules
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=chosen if isinstance(chosen, str) else list(chosen),
        init_lora_weights=True,
    )
    if chosen == "all-linear":
        config.target_modules = _linear_names(model)
    _inject(config, model, lora.name)
    _only_trainable(model, lora.name)


def load(model: nn.Module, directory: str | Path, *, name: str, trainable: bool) -> None:
    """Inject the LoRA saved in ``directory`` (peft's layout) under ``name``.

    Raises:
        ValueError: The folder holds no LoRA, or its tensors do not fit the model.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(directory)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} holds no LoRA: adapter_model.safetensors is missing")
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    before = merge_name(model) if names(model) else None
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    _inject(config, model, name)
    tensors = load_file(weights)
    result: Any = set_peft_model_state_dict(model, tensors, adapter_name=name)
    if result.unexpected_keys:
        raise ValueError(f"{weights} does not fit this model: {result.unexpected_keys[:3]} ...")
    if len(state_dict(model, name=name)) != len(tensors):
        raise ValueError(
            f"{weights} holds {len(tensors)} tensors and its adapter_config.json describes "
            f"{len(state_dict(model, name=name))}: the two do not belong together"
        )
    if trainable:
        _only_trainable(model, name)
    else:
        # Injecting changes what trains; a reference must leave that as it was.
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key in trained)
        if before is not None:
            activate(model, before)


def names(model: nn.Module) -> list[str]:
    """The names of the LoRAs the model carries, in the order they were attached."""
    found: dict[str, None] = {}
    for layer in _layers(model):
        found.update(dict.fromkeys(layer.lora_A.keys()))
        found.update(dict.fromkeys(layer.lora_embedding_A.keys()))
    return list(found)


def merge_name(model: nn.Module) -> str:
    """The name of the LoRA in use."""
    for layer in _layers(model):
        return str(layer.active_adapters[0])
    raise ValueError("the model carries no LoRA")


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Within, every LoRA of ``model`` is off: the model is its own base."""
    layers = list(_layers(model))
    if not layers:
        raise ValueError("the model carries no LoRA, so switching it off gives no reference")
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


@contextmanager
def active(model: nn.Module, name: str) -> Iterator[None]:
    """Within, the LoRA ``name`` is the one in use; which parameters train is left alone."""
    if name not in names(model):
        raise ValueError(f"no LoRA named {name!r}; the model carries {names(model)}")
    before = merge_name(model)
    activate(model, name)
    try:
        yield
    finally:
        activate(model, before)


def belongs(key: str, name: str) -> bool:
    """Whether the parameter ``key`` is part of the LoRA ``name``."""
    return re.search(rf"\.lora_\w+\.{re.escape(name)}(\.|$)", key) is not None


def scaling(model: nn.Module, name: str) -> dict[str, float]:
    """What each layer's update of the LoRA ``name`` is multiplied by, by layer."""
    return {
        key: float(layer.scaling[name])
        for key, layer in model.named_modules()
        if isinstance(layer, _layer_class()) and name in layer.scaling
    }


@torch.no_grad()
def factors(model: nn.Module, name: str) -> dict[str, Factors]:
    """What the LoRA ``name`` adds to each layer's weight, as factors, by layer.

    Raises:
        ValueError: It adds something else than a product of matrices to a linear layer.
    """
    found = {}
    for key, layer in model.named_modules():
        if not isinstance(layer, _layer_class()) or name not in layer.scaling:
            continue
        if name not in layer.lora_A or not isinstance(layer.lora_A[name], nn.Linear):
            raise ValueError(f"the LoRA of {key} is of no linear layer, so it cannot be averaged")
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        if name in layer.lora_variant or layer.lora_B[name].bias is not None:
            raise ValueError(f"the LoRA of {key} is more than a product B A: it cannot be averaged")
        found[key] = (layer.scaling[name] * up.float(), down.detach().float())
    return found


def carries(layer: nn.Module) -> bool:
    """Whether the module is a layer that LoRAs were attached to."""
    return isinstance(layer, _layer_class())


def disable(model: nn.Module) -> None:
    """Switch every LoRA of ``model`` off for good: the model is its own base."""
    for layer in _layers(model):
        layer._disable_adapters = True


def is_fresh(model: nn.Module) -> bool:
    """True where every LoRA update is exactly zero, as right after `attach`."""
    return all(
        not torch.any(part.weight) for layer in _layers(model) for part in layer.lora_B.values()
    )


def equal(model: nn.Module, first: str, second: str) -> bool:
    """True where two of the model's LoRAs hold the same tensors."""
    one, other = state_dict(model, name=first), state_dict(model, name=second)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def state_dict(model: nn.Module, *, name: str = DEFAULT_NAME) -> dict[str, Tensor]:
    """The LoRA's tensors under peft's own key names."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=name)
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def save(
    model: nn.Module, directory: Path, *, name: str = DEFAULT_NAME, base: str | None = None
) -> None:
    """Write adapter_model.safetensors and adapter_config.json, as `PeftModel` reads them."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = cast(Any, model).peft_config[name]
    config.base_model_name_or_path = base
    config.inference_mode = True
    # A wrapped model prefixes its keys; injected ones have none, and peft's loader wants them.
    tensors = {f"base_model.model.{k}": v for k, v in state_dict(model, name=name).items()}
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(directory))
    config.inference_mode = False


def _inject(config: Any, model: nn.Module, name: str) -> None:
    from peft import inject_adapter_in_model

    with warnings.catch_warnings():
        # Several LoRAs in one model is what a named reference is; peft warns about it each time.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        try:
            inject_adapter_in_model(config, model, adapter_name=name)
        except ValueError as error:
            kind = type(model).__name__
            raise ValueError(f"cannot attach LoRA {name!r} to {kind}: {error}") from error
    for key, parameter in model.named_parameters():
        if belongs(key, name):
            # As peft's own loaders do: updates of AdamW would be lost in half precision.
            parameter.data = parameter.data.float()


def _layer_class() -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return BaseTunerLayer


def _layers(model: nn.Module) -> Iterator[Any]:
    return (m for m in model.modules() if isinstance(m, _layer_class()))


def activate(model: nn.Module, name: str) -> None:
    """Use the LoRA ``name`` from now on; which parameters train is left alone."""
    for layer in _layers(model):
        layer._active_adapter = name


def _only_trainable(model: nn.Module, name: str) -> None:
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(belongs(key, name))
    activate(model, name)


def _linear_names(model: nn.Module) -> list[str]:
    """Every linear layer except the output head, which peft leaves out as well."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    wrapped = {name for name, m in model.named_modules() if isinstance(m, _layer_class())}
    found = [
        name
        for name, module in model.named_modules()
        if ((isinstance(module, torch.nn.Linear) and module is not head) or name in wrapped)
        and not any(name.startswith(f"{outer}.") for outer in wrapped)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no linear layer to attach a LoRA to")
    return found
