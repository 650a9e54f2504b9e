"""Batches as tensors and JSON: what a rollout buffer needs to survive a restart. No pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Batch, Trajectory


def pack(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A batch as named tensors and a JSON-serialisable description.

    Decoded pictures are left out (None takes their place): nothing after credit reads them.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _fields(batch, "", tensors)


def unpack(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> Batch:
    """The batch that `pack` described."""
    values = {name: _unpack(node, tensors) for name, node in description.items()}
    values["trajectory"] = Trajectory(**values["trajectory"])
    values["metrics"] = {k: tuple(v) for k, v in values["metrics"].items()}
    values["parts"] = tuple(values["parts"])
    return Batch(**values)


def _fields(batch: Batch, path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        f.name: _pack(getattr(batch, f.name), f"{path}{f.name}", tensors) for f in fields(batch)
    }


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy: safetensors refuses two names for one memory.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, Batch):
        return {"batch": _fields(value, f"{path}.", tensors)}
    if isinstance(value, Trajectory):
        inner = {f.name: getattr(value, f.name) for f in fields(value)}
        inner["outputs"] = [o if isinstance(o, str) else None for o in value.outputs]
        return _pack(inner, path, tensors)
    if isinstance(value, Mapping):
        return {"dict": {k: _pack(v, f"{path}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise ValueError(f"{path} holds a {type(value).__name__}, which a checkpoint cannot keep")


def _unpack(node: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "batch" in node:
        return unpack(tensors, node["batch"])
    if "dict" in node:
        return {k: _unpack(v, tensors) for k, v in node["dict"].items()}
    if "list" in node:
        return [_unpack(v, tensors) for v in node["list"]]
    return node["value"]


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global random streams, for code of users that draws from them."""
    import random

    version, internal, gauss = random.getstate()
    return {"torch": torch.get_rng_state()}, {"python": [version, list(internal), gauss]}


def restore_rng(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Put the global random streams back."""
    import random

    version, internal, gauss = description["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(tensors["torch"])
