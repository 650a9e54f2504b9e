"""How many parameters an alignment left as they were.

Two traps. bfloat16 holds 8 significant bits, so updates below about 1 / 256 of a weight vanish in
the cast, and part of the sparsity is the number format's: the float32 figure beside it says how
much. And the order matters: both weights are cast first and subtracted then, so that a step from 0
to 1e-5, which bfloat16 rounds up to 1.00136e-5, is a change at a tolerance of 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """Unchanged entries of one tensor or of many.

    Attributes:
        unchanged: Entries that differ by no more than the tolerance.
        total: All entries.
    """

    unchanged: int
    total: int

    @property
    def share(self) -> float:
        """``unchanged / total``; 1 for the same weights, and for none at all."""
        return self.unchanged / self.total if self.total else 1.0

    def __add__(self, other: Sparsity) -> Sparsity:
        return Sparsity(unchanged=self.unchanged + other.unchanged, total=self.total + other.total)


NOTHING = Sparsity(unchanged=0, total=0)


def tensor_sparsity(
    before: Tensor,
    after: Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = TOLERANCE,
) -> Sparsity:
    """``1 - |after - before|_0 / n``, an entry being unchanged where ``|difference| <= tolerance``.

    Both are cast to ``dtype``, and the difference is taken in float32.

    Args:
        before: Any shape.
        after: The same shape.
        dtype: What both are cast to.
        tolerance: Largest difference of an unchanged entry.

    Returns:
        A share of 1 where the two are equal.

    Raises:
        ValueError: The shapes differ.

    References:
        2505.11711.
    """
    if before.shape != after.shape:
        raise ValueError(f"shapes {tuple(before.shape)} and {tuple(after.shape)} differ")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    difference = after.detach().to(dtype).to(wide) - before.detach().to(dtype).to(wide)
    return Sparsity(unchanged=int((difference.abs() <= tolerance).sum()), total=int(before.numel()))


def total(each: Mapping[str, Sparsity]) -> Sparsity:
    """Of all tensors together, every entry counting alike."""
    return sum(each.values(), NOTHING)


def by_layer(each: Mapping[str, Sparsity]) -> dict[str, Sparsity]:
    """Tensors of one layer together: those whose names agree up to and with the first number.

    Names without a number go by the module they belong to.
    """
    found: dict[str, Sparsity] = {}
    for name, sparsity in each.items():
        parts = name.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        layer = ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1]) or name
        found[layer] = found.get(layer, NOTHING) + sparsity
    return found


def compare_weights(
    before: Iterable[tuple[str, Tensor]],
    after: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = TOLERANCE,
) -> dict[str, Sparsity]:
    """The sparsity of each tensor, by name, of two lists of the same names in the same order.

    Raises:
        ValueError: Names or shapes differ.
    """
    found: dict[str, Sparsity] = {}
    pairs = zip(before, after, strict=True)
    for (name, old), (other, new) in pairs:
        if name != other:
            raise ValueError(f"the weights do not correspond: {name} stands against {other}")
        try:
            found[name] = tensor_sparsity(old, new, dtype=dtype, tolerance=tolerance)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def compare_models(
    before: nn.Module,
    after: nn.Module,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = TOLERANCE,
) -> dict[str, Sparsity]:
    """The sparsity of each parameter, LoRAs in use being merged into theirs.

    Raises:
        ValueError: The models have different parameters.
    """
    names = [[name for name, _ in merged(model)] for model in (before, after)]
    if names[0] != names[1]:
        different = sorted(set(names[0]) ^ set(names[1]))
        raise ValueError(f"the models have different parameters: {different[:3]} ...")
    return compare_weights(merged(before), merged(after), dtype=dtype, tolerance=tolerance)


def merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of ``model`` with the LoRAs in use added to theirs, one after the other."""
    from peft.tuners.lora import LoraLayer

    layers = {
        f"{name}." if name else "": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    for key, parameter in model.named_parameters():
        owner = next((prefix for prefix in layers if key.startswith(prefix)), None)
        if owner is None:
            yield key, parameter.detach()
        elif key.startswith(f"{owner}base_layer."):
            name = key.replace(f"{owner}base_layer.", owner, 1)
            update = _update(layers[owner]) if name == f"{owner}weight" else None
            value = parameter.detach()
            yield name, value if update is None else value.float() + update.to(value.device)


def _update(layer: Any) -> Tensor | None:
    """``scaling B A`` of the LoRAs in use, float32; None where all are off or merged."""
    if layer.disable_adapters or layer.merged:
        return None
    carried = [n for n in layer.active_adapters if n in layer.lora_A or n in layer.lora_embedding_A]
    if any(name in layer.lora_variant for name in carried):
        raise ValueError(
            f"the LoRA {carried} is of a kind that is more than a product (DoRA): merge it first"
        )
    updates = [layer.get_delta_weight(name).detach().float() for name in carried]
    return torch.stack(updates).sum(0) if updates else None


def compare_folders(
    before: str | Path,
    after: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = TOLERANCE,
) -> dict[str, Sparsity]:
    """The sparsity of each tensor of two folders of models, read tensor by tensor.

    Folders as `save_pretrained` writes whole models: ``*.safetensors``, in shards or not. A LoRA's
    folder is refused: the change it makes is not in its tensors (see `compare_models`).

    Raises:
        ValueError: A folder holds no weights or a LoRA, or the tensors' names differ.
    """
    with ExitStack() as stack:
        old, new = (_opened(Path(folder), stack) for folder in (before, after))
        different = sorted(old.keys() ^ new.keys())
        if different:
            raise ValueError(
                f"{before} and {after} hold different tensors: {', '.join(different[:3])} ..."
            )
        names = sorted(old)
        return compare_weights(
            ((name, old[name].get_tensor(name)) for name in names),
            ((name, new[name].get_tensor(name)) for name in names),
            dtype=dtype,
            tolerance=tolerance,
        )


def _opened(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file of each tensor."""
    if (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{folder} holds a LoRA, whose change of the weights is a product of its tensors: load "
            "both models and use compare_models"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file")
    found: dict[str, Any] = {}
    for path in files:
        opened = stack.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(opened.keys(), opened)
    return found
