"""Writing what diffusers loads without mmalign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LoraBaseMixin
from torch import nn

from mmalign import lora
from mmalign.diffusion.families import Family


def save(family: Family, model: nn.Module, directory: Path) -> None:
    """Write a LoRA, or the whole pipeline where the network itself was trained.

    A LoRA is written twice: as ``pytorch_lora_weights.safetensors``, which
    ``pipe.load_lora_weights(directory)`` reads together with its scale, and in peft's own layout,
    from which a further run starts (``lora: {path: ...}``) and which
    ``PeftModel.from_pretrained(network, directory)`` reads; pipelines that load no LoRA get this
    one alone. A trained network is written as a
    pipeline, for ``DiffusionPipeline.from_pretrained(directory)``.

    Args:
        family: The pipeline.
        model: Its network, with or without LoRA.
        directory: Where to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if lora.names(model):
        name = lora.merge_name(model)
        lora.save(model, directory, name=name)
        config = _plain(model.peft_config[name].to_dict())  # type: ignore[union-attr,index]
        if isinstance(family.pipe, LoraBaseMixin):
            family.pipe.save_lora_weights(
                str(directory),
                **{
                    f"{family.network_name}_lora_layers": lora.state_dict(model, name=name),
                    f"{family.network_name}_lora_adapter_metadata": config,
                },
            )
        return
    before = getattr(family.pipe, family.network_name)
    setattr(family.pipe, family.network_name, model)
    family.pipe.save_pretrained(str(directory), safe_serialization=True)
    setattr(family.pipe, family.network_name, before)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A LoRA's settings as JSON can hold them; diffusers reads them back by these names."""
    kept = ("r", "lora_alpha", "lora_dropout", "bias", "use_dora", "use_rslora")
    targets = config["target_modules"]
    plain = {name: config[name] for name in kept if name in config}
    plain["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return plain
