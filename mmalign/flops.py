"""Counting the products of real passes, and how fast this machine can make such products.

The counter sees what runs, whatever the network: matrix products inside custom functions, attention
and convolutions, forward and backward. The time those products need at the measured peak is the
limit that no implementation of the same products beats.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

SHAPES_MEASURED = 4
"""The peak is measured at so many of the shapes that most of the work is done in."""
SECONDS_A_SHAPE = 0.05
REPEATS = 3
_aten = torch.ops.aten
_IN_PLACE = {_aten.addmm_: _aten.addmm, _aten.baddbmm_: _aten.baddbmm}
_FACTORS = {_aten.mm: (0, 1), _aten.addmm: (1, 2)}
"""Where the two factors of a matrix product stand among the arguments."""


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_val: Any, **given: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *rest: Any, out_val: Any, **given: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


# PyTorch's own table has the kernel of CPUs from 2.15 on.
_OF_CPUS: Mapping[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A kind of work: a matrix product ``[m, k] x [k, n]``, or another operation by its name.

    Attributes:
        name: Of the operation.
        shape: (m, k, n) of a plain matrix product; empty for attention, convolutions and batches.
        dtype: Of the factors.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class FlopCounter(TorchDispatchMode):
    """While active, adds up the FLOPs of everything this thread and its backward passes run.

    A product of ``[m, k]`` and ``[k, n]`` is 2 m k n. Causal attention counts half of the square,
    which is all that it needs.

    Attributes:
        products: FLOPs by kind of product.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    @property
    def total(self) -> int:
        """FLOPs of everything counted."""
        return self.products.total()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        packet = _IN_PLACE.get(func.overloadpacket, func.overloadpacket)
        formula: Callable[..., int] | None = _OF_CPUS.get(packet) or flop_registry.get(packet)
        if formula is not None:
            flops = formula(*args, **given, out_val=result)
            if _is_causal(func, args, given):
                flops //= 2
            self.products[_product(packet, args)] += flops
        return result


def _is_causal(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    if "is_causal" not in names:
        return False
    place = names.index("is_causal")
    return bool(kwargs.get("is_causal", args[place] if place < len(args) else False))


def _product(packet: Any, args: tuple[Any, ...]) -> Product:
    first, second = (args[i] for i in _FACTORS.get(packet, (0, 1)))
    shape = (*first.shape, second.shape[1]) if packet in _FACTORS else ()
    return Product(name=str(packet), shape=shape, dtype=first.dtype)


def peak(product: Product, *, device: torch.device, seconds: float = SECONDS_A_SHAPE) -> float:
    """FLOP/s of this machine, as it is threaded now, at a matrix product: the best of many.

    Args:
        product: With its shape.
        device: Where.
        seconds: How long to try, at least.
    """
    m, k, n = product.shape
    first = torch.rand(m, k, device=device).to(product.dtype)
    second = torch.rand(k, n, device=device).to(product.dtype)
    out = first @ second
    best, spent, number = float("inf"), 0.0, 0
    while spent < seconds or number < REPEATS:
        start = time.perf_counter()
        torch.mm(first, second, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
        best, spent, number = min(best, took), spent + took, number + 1
    return 2.0 * m * k * n / best


def measured_peaks(
    products: Mapping[Product, int], *, device: torch.device, number: int = SHAPES_MEASURED
) -> dict[Product, float]:
    """The peaks, FLOP/s, at the shapes that most of the FLOPs are spent in.

    Empty where no plain matrix product was counted.
    """
    plain = sorted((p for p in products if p.shape), key=lambda p: (-products[p], p.shape))
    return {product: peak(product, device=device) for product in plain[:number]}


def limit_seconds(products: Mapping[Product, int], peaks: Mapping[Product, float]) -> float:
    """The least time the products need: the sum of FLOPs / peak over their kinds.

    What has no peak of its own, attention and convolutions among it, is held against the best one.
    """
    best = max(peaks.values())
    return sum(flops / peaks.get(product, best) for product, flops in products.items())
