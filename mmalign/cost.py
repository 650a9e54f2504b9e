"""What a run will need: work by pass, time at the machine's limit, memory by kind.

The work is counted while real batches run (`mmalign.flops`), so it is right for any network. The
quantities a reader can check by hand, for a decoder with N parameters in its L layers of width d,
a vocabulary of V and groups of G answers of R tokens to prompts of P tokens:

    body       2 N (P + G R)                      FLOPs of a forward pass, each prompt once
    attention  4 L d (P^2 / 2 + G (R P + R^2 / 2))
    head       2 d V G R                          only where a token is scored

A backward pass costs twice the forward pass where every weight is trained, once where the weights
are frozen (LoRA), and once more where activations are recomputed; a reference costs one forward
pass, or nothing once its scores are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

MOMENTS = 2
"""AdamW keeps two moments of every trained parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many parameters a network has, by what they do.

    Attributes:
        embedding: Tables that are looked up, which costs no FLOPs; a tied head among them.
        head: Of the projection to the vocabulary, where it has weights of its own.
        body: All others: each costs 2 FLOPs a position.
    """

    embedding: int
    head: int
    body: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.body


def parameters_of(model: nn.Module) -> Parameters:
    """The parameters by kind; a head is a linear layer as wide as an embedding has entries."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    embedding = {id(m.weight): m.weight.numel() for m in tables}
    entries = {m.num_embeddings for m in tables}
    head = {
        id(m.weight): m.weight.numel()
        for m in model.modules()
        if isinstance(m, nn.Linear) and m.out_features in entries and id(m.weight) not in embedding
    }
    total = sum(p.numel() for p in model.parameters())
    known = sum(embedding.values()) + sum(head.values())
    return Parameters(
        embedding=sum(embedding.values()), head=sum(head.values()), body=total - known
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes a run needs at a time, by kind.

    Attributes:
        weights: Of the policy, and of its reference where that has some of its own.
        gradients: Of what is trained.
        optimizer: Its moments.
        activations: What the forward pass of one piece keeps for its backward pass; grows linearly
            with the tokens of a piece.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, f.name) for f in fields(self))


def memory(
    networks: Iterable[nn.Module], trained: Iterable[nn.Parameter], *, activations: int
) -> Memory:
    """The memory of a run by kind.

    Args:
        networks: All that are in memory; what they share counts once.
        trained: The parameters that training moves.
        activations: Bytes, from `kept_bytes`.
    """
    tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return Memory(
        weights=sum(_storages(tensors).values()),
        gradients=gradients,
        optimizer=MOMENTS * gradients,
        activations=activations,
    )


def kept_bytes(forward: Callable[[], object], *, apart_from: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward pass; what shares memory counts once.

    What layers with activation checkpointing recompute is not kept, hence not counted.

    Args:
        forward: Returns something that holds on to the graph.
        apart_from: Tensors that are there anyway: the weights.
    """
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        # Without its graph: a tensor that its own graph keeps would never be freed.
        kept.append(tensor.detach())
        return kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    known = _storages(apart_from)
    found = {at: size for at, size in _storages(kept).items() if at not in known}
    del result
    return sum(found.values())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address of every distinct piece of memory behind the tensors."""
    found = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def amount(number: float, unit: str) -> str:
    """Three digits and a decimal prefix: ``amount(4.78e10, "FLOP")`` is "47.8 GFLOP"."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # What three digits round to the next prefix belongs to it.
        if number >= 0.9995 * scale:
            return f"{number / scale:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"


def size(number: float) -> str:
    """Bytes with a binary prefix: ``size(1.5 * 2**30)`` is "1.5 GiB"."""
    for prefix, scale in (("T", 2**40), ("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if number >= 999.5 / 1024 * scale:
            return f"{number / scale:.3g} {prefix}iB"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: "2.1 s", "3.5 min", "5.2 h"."""
    for unit, scale in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.3g} s"
