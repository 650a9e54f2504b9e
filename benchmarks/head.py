"""The head's scores: a whole table of logits, checkpoints, and ours. ``python -m benchmarks.head``.

Every measurement is a process of its own: best of several forward and backward passes in CPU time,
and the peak of resident memory over what was there before the first. The gradient of a trained
weight, ``V H`` numbers that nobody can do without, is taken off the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import Clock
from mmalign.head import Head, head_scores

ROOT = Path(__file__).resolve().parent.parent
MODES = ("forward", "frozen", "trained")
CHUNK = 256


def naive(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """The logits of all states at once."""
    log_p = functional.linear(states, weight).log_softmax(1)
    return log_p.gather(1, tokens.unsqueeze(1)).squeeze(1)


def checkpointed(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Some states at a time, their logits made again in the backward pass."""
    parts = zip(states.split(CHUNK), tokens.split(CHUNK), strict=True)
    return torch.cat([checkpoint(naive, x, weight, y, use_reentrant=False) for x, y in parts])


def ours(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """`mmalign.head.head_scores`."""
    return head_scores(states, tokens, Head(weight=weight))["log_probs"]


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "naive": naive, "checkpoint": checkpointed, "ours": ours,
}  # fmt: skip


def measured(side: str, mode: str, shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Seconds, MB and GEMM share of one side on ``[N, H]`` states and ``[V, H]`` weight."""
    count, width, symbols = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(symbols, width).normal_(0, 0.05, generator=generator)
    states = torch.empty(count, width).normal_(generator=generator)
    tokens = torch.randint(symbols, (count,), generator=generator)
    weight.requires_grad_(mode == "trained")
    states.requires_grad_(mode != "forward")
    # The library's own buffers are there before the baseline.
    torch.mm(states.detach(), weight.detach()[:width].T)
    clock = Clock(units=count, warmup=0)
    for _ in range(repeats):
        states.grad = weight.grad = None
        values = SIDES[side](states, weight, tokens)
        if mode != "forward":
            (values * torch.linspace(-1, 1, count)).sum().backward()
        clock.tick(values.detach().sum())
    found = clock.measured()
    inherent = weight.nbytes if mode == "trained" else 0
    products = {"forward": 1, "frozen": 2, "trained": 3}[mode]
    return {
        "seconds": min(found.seconds),
        "megabytes": (found.memory - inherent) / 2**20,
        "gigaflops": products * 2e-9 * count * width * symbols / min(found.seconds),
    }


def main() -> None:
    """Print the table, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small vocabulary")
    parser.add_argument("--counts", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--symbols", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--child", action="store_true", help="be the process of one measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    symbols = 8192 if arguments.quick else arguments.symbols
    if arguments.child:
        shape = (arguments.counts[0], arguments.width, symbols)
        found = measured(arguments.sides[0], arguments.modes[0], shape, arguments.repeats)
        print(json.dumps(found))
        return
    print(f"H {arguments.width}, V {symbols}, {arguments.threads} thread(s), float32\n")
    print("| pass | N | side | CPU-s | GFLOP/s of the products needed | extra MB |")
    print("|---|---|---|---|---|---|")
    for mode in arguments.modes:
        for count in arguments.counts:
            for side in arguments.sides:
                options = ["--width", arguments.width, "--symbols", symbols]
                options += ["--repeats", arguments.repeats, "--threads", arguments.threads]
                found = _child(side, mode, count, [str(o) for o in options])
                print(
                    f"| {mode} | {count} | {side} | {found['seconds']:.3f} | "
                    f"{found['gigaflops']:.0f} | {found['megabytes']:.0f} |",
                    flush=True,
                )


def _child(side: str, mode: str, count: int, options: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.head", "--child", "--sides", side]
    command += ["--modes", mode, "--counts", str(count), *options]
    threads = options[-1]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
