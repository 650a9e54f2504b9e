"""The few collective operations the core needs, through torch.distributed as accelerate set it up.

With one process each of them returns its input.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(value: Tensor) -> Tensor:
    """The concatenation over ranks of a 1-D tensor whose length may differ by rank."""
    if world_size() == 1:
        return value
    home, value = value.device, value.to(_device())
    length = torch.tensor([value.shape[0]], device=value.device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = int(max(int(n) for n in lengths))
    if longest == 0:
        return value.to(home)
    padded = value.new_zeros(longest)
    padded[: value.shape[0]] = value
    parts = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(n)] for p, n in zip(parts, lengths, strict=True)]).to(home)


def gathered(value: Tensor) -> tuple[Tensor, slice]:
    """``value`` (``[M]``, M may differ by rank) of all ranks, and where this rank's part lies."""
    counts = all_gather(torch.tensor([value.shape[0]], device=value.device)).tolist()
    start = sum(counts[: rank()])
    return all_gather(value), slice(start, start + value.shape[0])


def all_reduce(value: Tensor) -> Tensor:
    """The sum over ranks."""
    if world_size() == 1:
        return value
    total = value.to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(value.device)


def total(value: float, *, device: torch.device) -> float:
    """The sum over ranks of a number, in double precision."""
    if world_size() == 1:
        return float(value)
    return float(all_reduce(torch.tensor(value, dtype=torch.float64, device=device)))


def _device() -> torch.device:
    """Where the backend wants tensors: nccl knows nothing but GPUs."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def barrier() -> None:
    """Wait for every process."""
    if world_size() > 1:
        dist.barrier()


def is_main() -> bool:
    """True on the process that writes logs and checkpoints."""
    return rank() == 0
