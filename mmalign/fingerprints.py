"""What frozen results are filed under: hashes of everything they depend on.

A result that is kept on disk has an address of two halves. The *fingerprint* names what computed
it (weights, LoRA, dtype, settings, library versions) and is the folder; the *key* names what it was
computed from (a row, a picture, a text) and is the sample's id within the folder. Nothing else
decides whether a kept result may be used, so nothing stale can be found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from mmalign._version import __version__
from mmalign.pieces import extents
from mmalign.types import Trajectory

LIBRARIES = ("torch", "transformers", "diffusers", "peft")
"""Whose code a frozen result is computed by."""


def row_keys(trajectory: Trajectory) -> list[str]:
    """The id of each row: a hash of its prompt's inputs, its steps and its mask.

    The inputs are what the network is given, so whatever made them counts without being named: the
    tokenizer, the chat template and truncation through the ids of prompt and answer, the processor
    and a picture's crop through the pixels, a VAE and text encoders through latents and states.

    Everything up to the last step of the policy counts, masked steps between (what a tool said)
    included, since later steps may depend on it. The padding behind does not count, so a row has
    one key whatever batch it stands in. What a sampler noted of its own draws (``log_probs``) is
    no input either.
    """
    prompts = [_prompt_digest(trajectory, i) for i in range(trajectory.num_prompts)]
    lengths = extents(trajectory.mask).tolist()
    keys = []
    for row, prompt in enumerate(trajectory.prompt_of.tolist()):
        digest = hashlib.sha256(prompts[prompt])
        _update(digest, "mask", trajectory.mask[row, : lengths[row]])
        for name in sorted(trajectory.stepwise):
            _update(digest, name, trajectory.stepwise[name][row, : lengths[row]])
        keys.append(digest.hexdigest())
    return keys


def content_key(value: Any) -> str:
    """A hash of a value: text, numbers, bytes, tensors (with dtype and shape), lists and dicts."""
    digest = hashlib.sha256()
    _update(digest, "", value)
    return digest.hexdigest()


def weights_key(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of named tensors: names, dtypes, shapes and every bit of their values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda entry: entry[0]):
        _update(digest, name, tensor)
    return digest.hexdigest()


def dtypes_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The dtypes of named tensors, for a person to read."""
    return " ".join(sorted({str(t.dtype).removeprefix("torch.") for _, t in tensors}))


def code_versions() -> str:
    """The versions of the code that computes: mmalign's and the libraries'."""
    found = [f"mmalign {__version__}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    return ", ".join(found)


def precision_key(device: str) -> str:
    """What a key says of precision: results in another precision are other results."""
    found = f"-{torch.get_autocast_dtype(device)}" if torch.is_autocast_enabled(device) else ""
    products = torch.get_float32_matmul_precision()
    return found if products == "highest" else f"{found}-{products}"


def fingerprint(parts: Mapping[str, str]) -> str:
    """SHA-256 of the parts: it changes where any of them does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _prompt_digest(trajectory: Trajectory, index: int) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(trajectory.static):
        _update(digest, name, trajectory.static[name][index])
    return digest.digest()


def _update(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _update(digest, f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key in sorted(value):
            _update(digest, f"{name}.{key}", value[key])
    else:
        digest.update(f"{name} {value!r}\n".encode())
