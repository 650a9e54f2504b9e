"""Scores from states against the same from a whole table of logits, written out longhand."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmalign import kept as module
from mmalign import tiles, tokens
from mmalign.forward_kl import forward_kl
from mmalign.head import TOP_K, Head, head_scores
from mmalign.protocols import ON_REQUEST
from tests.oracle import symbols

N, H, V = 7, 5, 23
NAMES = ("log_probs", "entropy", "kl", "kl_forward", "reference")
CHOSEN = torch.tensor([2, 4, 5, 6, 21, 7, 2])
WANTS = [
    frozenset(want)
    for size in range(4)
    for want in itertools.combinations(("entropy", "kl", "top_k_mass"), size)
]
WANTS += [
    frozenset({"kl_forward"}),
    frozenset({"kl_forward", "kl", "top_k_mass", "log_collision"}),
]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


HEADS = {
    "plain": {},
    "bias": {"bias": drawn(V, seed=1)},
    "temperature": {"temperature": 0.7, "scale": 1.3},
    # With small tiles, the first block is banned altogether.
    "banned": {"banned": (22, *range(10))},
    "softcap": {"softcap": 2.0},
    "everything": {
        "bias": drawn(V, seed=2), "banned": (1, 9),
        "temperature": 1.7, "scale": 0.3, "softcap": 1.5,
    },
}  # fmt: skip


def log_table(states: Tensor, head: Head) -> Tensor:
    """``[N, V]`` float64 log-probs, -1e30 or so where banned."""
    z = states.double() @ head.weight.double().T
    z = head.scale * (z if head.bias is None else z + head.bias.double())
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    z = z / head.temperature
    excluded = torch.zeros(len(head.weight), dtype=torch.bool)
    excluded[list(head.banned)] = True
    return torch.where(excluded, -1e30, z).log_softmax(1)


def longhand(
    states: Tensor, chosen: Tensor, head: Head, other: tuple[Tensor, Head]
) -> dict[str, Tensor]:
    """``[N]`` of every name."""
    log_p, log_q = log_table(states, head), log_table(*other).detach()
    kept = [i for i in range(len(head.weight)) if i not in head.banned]
    p, best = log_p.exp(), log_p.topk(10).values
    return {
        "log_probs": log_p[torch.arange(N), chosen],
        "entropy": -(p * log_p)[:, kept].sum(1),
        "kl": (p * (log_p - log_q))[:, kept].sum(1),
        "kl_forward": (log_q.exp() * (log_q - log_p))[:, kept].sum(1),
        "reference": log_q[torch.arange(N), chosen],
        "log_collision": p.square().sum(1).log(),
        "top_k_mass": best.exp().sum(1),
        "top_k_entropy": -(best.softmax(1) * best.log_softmax(1)).sum(1),
    }


def copies(states: Tensor, head: Head, trained: str) -> tuple[Tensor, Head, list[Tensor]]:
    """States and head of which the ``trained`` parts require a gradient, and those parts."""
    parts = {"states": states.clone(), "weight": head.weight.clone()}
    if head.bias is not None:
        parts["bias"] = head.bias.clone()
    names = [n for n in parts if n in trained.split()]
    for name in names:
        parts[name].requires_grad_()
    own = replace(head, weight=parts["weight"], bias=parts.get("bias"))
    return parts["states"], own, [parts[n] for n in names]


def loss_of(values: dict[str, Tensor]) -> Tensor:
    """A sum with another weight for every name and row."""
    return sum(
        (values[name] * drawn(N, seed=i).to(values[name])).sum()
        for i, name in enumerate(NAMES)
        if name in values
    )


@pytest.mark.parametrize("trained", ["", "states", "states weight bias", "weight", "states bias"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile_bytes", [2**23, 400])
def test_values_and_gradients_are_the_longhand_ones(trained, kind, dtype, tile_bytes, monkeypatch):
    """Whatever is wanted and whatever trains, in one tile or many, kept or made again."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", tile_bytes)
    fields = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in HEADS[kind].items()}
    head = Head(weight=drawn(V, H, seed=3, dtype=dtype), **fields)
    states = drawn(N, H, seed=4, dtype=dtype)
    other = drawn(N, H, seed=5, dtype=dtype), replace(head, weight=drawn(V, H, seed=6, dtype=dtype))
    near = 1e-5 if dtype == torch.float32 else 1e-9
    chosen = CHOSEN.clamp(min=10) if kind == "banned" else CHOSEN
    # Logits are kept for the backward pass of a head in training alone.
    room = [0, 300, 2**20] if {"weight", "bias"} & set(trained.split()) else [0]
    for want, apart in itertools.product(WANTS, room):
        monkeypatch.setattr(module, "APART_BYTES", apart)
        x, own, parts = copies(states, head, trained)
        found = head_scores(x, chosen, own, want=want, against=other)
        beside = {"reference"} if "kl_forward" in want else set()
        assert found.keys() == {"log_probs", *want, *beside}
        y, theirs, expected_parts = copies(states, head, trained)
        expected = longhand(y, chosen, theirs, other)
        for name, value in found.items():
            assert value.dtype == torch.float32 and value.shape == (N,)
            assert value.requires_grad == (bool(parts) and name in NAMES[:4])
            torch.testing.assert_close(value, expected[name].float(), rtol=1e-5, atol=1e-5)
        if parts:
            loss_of(found).backward()
            loss_of({name: expected[name] for name in found}).backward()
            for part, expected_part in zip(parts, expected_parts, strict=True):
                torch.testing.assert_close(part.grad, expected_part.grad, rtol=near, atol=near)


def test_the_distribution_is_that_of_step_logits():
    head = Head(weight=drawn(V, H, seed=1), temperature=0.6, banned=(4,))
    states = drawn(N, H, seed=2)
    want = frozenset({"entropy", "kl", "top_k_mass", "top_k_entropy"})
    found = head_scores(states, CHOSEN, head, want=want, against=(2 * states, head))
    logits, reference = (
        tokens.step_logits(x @ head.weight.T, temperature=0.6, banned=(4,))
        for x in (states, 2 * states)
    )
    expected = symbols.head_scores(logits, CHOSEN, want=want, against=reference, k=TOP_K)
    for name in want | {"log_probs"}:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_landmarks():
    """States of zeros know nothing: -log V, log V, 10 of 23, log 10; no distance to itself; two
    draws agree once in V times.
    """
    want = ON_REQUEST
    head = Head(weight=drawn(V, H))
    states = torch.zeros(N, H)
    found = head_scores(states, CHOSEN, head, want=want, against=(states, head))
    expected = {
        "log_probs": -math.log(V), "entropy": math.log(V), "kl": 0.0,
        "top_k_mass": 10 / V, "top_k_entropy": math.log(10),
        "kl_forward": 0.0, "log_collision": -math.log(V),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value] * N, abs=1e-6), name


def test_entropy_has_the_gradient_that_raises_it():
    """Along its gradient, entropy grows by the step times the gradient's squared length."""
    head, states = Head(weight=drawn(V, H)), drawn(N, H, seed=1).requires_grad_()
    before = head_scores(states, CHOSEN, head, want=frozenset({"entropy"}))["entropy"].sum()
    before.backward()
    gradient = states.grad
    step = 1e-2 / gradient.norm()
    after = head_scores(
        states.detach() + step * gradient, CHOSEN, head, want=frozenset({"entropy"})
    )
    gain = float(after["entropy"].sum() - before.detach())
    assert gain == pytest.approx(float(step * gradient.square().sum()), rel=0.02)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    """Logits of 0 and 1000: certain, and d log p / d x = w_y - w_0 where symbol 0 has all mass."""
    weight = torch.zeros(V, H)
    weight[0] = 1.0
    states = torch.full((N, H), 200.0).requires_grad_()
    head_scores(states, CHOSEN, Head(weight=weight))["log_probs"].sum().backward()
    assert states.grad.tolist() == [[-1.0] * H] * N


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_networks_are_summed_up_in_float32(dtype):
    """1e-5 of what float64 gives on the same rounded numbers; gradients have the inputs' dtype."""
    count, width, symbols = 64, 96, 5000
    states, weight = drawn(count, width, seed=1, dtype=dtype), 0.1 * drawn(symbols, width)
    weight, chosen = weight.to(dtype), torch.arange(count)
    x, w = states.clone().requires_grad_(), weight.clone().requires_grad_()
    found = head_scores(x, chosen, Head(weight=w), want=frozenset({"entropy"}))
    y, v = states.double().requires_grad_(), weight.double().requires_grad_()
    log_p = (y @ v.T).log_softmax(1)
    expected = log_p[torch.arange(count), chosen]
    assert float((found["log_probs"] - expected).detach().abs().max()) < 1e-5
    assert float((found["entropy"] + (log_p.exp() * log_p).sum(1)).detach().abs().max()) < 1e-5
    found["log_probs"].sum().backward()
    expected.sum().backward()
    half = torch.finfo(dtype).eps / 2
    for mine, theirs in ((x.grad, y.grad), (w.grad, v.grad)):
        assert mine.dtype == dtype
        # Rounded once, at the end: half a unit in the last place, and the smallest float16.
        torch.testing.assert_close(mine.double(), theirs, rtol=1.1 * half, atol=1e-6)


@pytest.mark.parametrize("trained", ["states", "states weight"])
def test_autocast_changes_nothing(trained):
    head, states = Head(weight=drawn(V, H)), drawn(N, H, seed=1)
    found = []
    for enabled in (False, True):
        x, own, parts = copies(states, head, trained)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values = head_scores(x, CHOSEN, own, want=frozenset({"entropy"}))
            loss_of(values).backward()
        found.append([*values.values(), *(part.grad for part in parts)])
    assert all(torch.equal(plain, cast) for plain, cast in zip(*found, strict=True))


@pytest.mark.parametrize("trained", ["", "states", "states weight bias"])
def test_no_tokens_are_no_trouble(trained):
    head = Head(weight=drawn(V, H), bias=drawn(V, seed=1))
    x, own, parts = copies(torch.empty(0, H), head, trained)
    want = frozenset({"entropy", "kl", "kl_forward", "top_k_mass", "log_collision"})
    found = head_scores(x, CHOSEN[:0], own, want=want, against=(x, head))
    assert [value.shape for value in found.values()] == [(0,)] * 7
    if parts:
        sum(value.sum() for name, value in found.items() if name in NAMES).backward()
    assert all(part.grad is not None and not part.grad.any() for part in parts)


def test_a_banned_token_has_no_probability_and_breaks_no_gradient():
    states, chosen = drawn(2, H, seed=1).requires_grad_(), torch.tensor([3, 4])
    for weight in (drawn(V, H), drawn(V, H).requires_grad_()):
        head = Head(weight=weight, banned=(3,), softcap=1.0)
        log_probs = head_scores(states, chosen, head)["log_probs"]
        assert log_probs[0] == float("-inf") and log_probs[1].isfinite()
        torch.where(torch.tensor([False, True]), log_probs, 0.0).sum().backward()
        assert states.grad[0].tolist() == [0.0] * H and states.grad[1].isfinite().all()
        log_probs, divergence, theirs = forward_kl(states, chosen, head, against=(states, head))
        assert log_probs[0] == theirs[0] == float("-inf") and divergence.abs().max() < 1e-6
        (slope,) = torch.autograd.grad(divergence.sum(), states)
        assert slope.isfinite().all()


def test_a_token_outside_the_vocabulary_does_not_pass():
    head, states = Head(weight=drawn(V, H)), drawn(1, H)
    for want in (frozenset(), frozenset({"kl_forward"})):
        found = head_scores(states, torch.tensor([V]), head, want=want, against=(states, head))
        assert found["log_probs"].isnan().all()


def test_the_gradient_is_not_differentiated_again():
    states = drawn(N, H).requires_grad_()
    values = head_scores(states, CHOSEN, Head(weight=drawn(V, H)))["log_probs"]
    (gradient,) = torch.autograd.grad((values**2).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("count", "width"), [(7, 5), (3, 16)])
def test_a_second_backward_pass_finds_nothing_kept(count, width, monkeypatch):
    """Logits wait in the gradient's memory, which the first pass hands out; twice gives twice."""
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 400)
    states = drawn(count, width).requires_grad_()
    weight = drawn(V, width, seed=1).requires_grad_()
    loss = head_scores(states, CHOSEN[:count], Head(weight=weight))["log_probs"].sum()
    loss.backward(retain_graph=True)
    once = states.grad.clone(), weight.grad.clone()
    log_p = (states.double() @ weight.double().T).log_softmax(1)
    expected = torch.autograd.grad(
        log_p[torch.arange(count), CHOSEN[:count]].sum(), (states, weight)
    )
    torch.testing.assert_close(once, tuple(g.float() for g in expected), rtol=1e-5, atol=1e-5)
    loss.backward()
    torch.testing.assert_close((states.grad, weight.grad), tuple(2 * g for g in once))


def test_misuse_is_refused():
    head, states = Head(weight=drawn(V, H)), drawn(N, H)
    with pytest.raises(ValueError, match="without a reference"):
        head_scores(states, CHOSEN, head, want=frozenset({"kl"}))
    with pytest.raises(ValueError, match="23 symbols, the reference 22"):
        other = states, Head(weight=drawn(V - 1, H))
        head_scores(states, CHOSEN, head, want=frozenset({"kl"}), against=other)
    with pytest.raises(ValueError, match="temperature is 0"):
        replace(head, temperature=0)
    with pytest.raises(ValueError, match="softcap is -1"):
        replace(head, softcap=-1)
    with pytest.raises(ValueError, match=r"\[23\] are not in 0 .. 22"):
        replace(head, banned=(0, V))


MEMORY = """
import re
from pathlib import Path
import torch
from mmalign.head import TOP_K, Head, head_scores
from tests.oracle import symbols

def resident(name):
    text = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\\s+(\\d+)", text)[1]) / 1024

torch.set_num_threads(1)
trained, want = {trained}, frozenset({want})
weight = torch.empty(152_000, 32).normal_().requires_grad_(trained)
states = torch.empty(512, 32).normal_().requires_grad_()
other = (torch.empty(512, 32).normal_(), Head(weight=weight.detach()))
before = resident("VmRSS")
found = head_scores(states, torch.arange(512), Head(weight=weight), want=want, against=other)
sum(value.sum() for value in found.values()).backward()
print(resident("VmHWM") - before - trained * weight.nbytes / 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("trained", "want"), [(False, ("entropy", "kl", "kl_forward", "log_collision")), (True, ())]
)
def test_no_table_of_tokens_by_vocabulary_is_made(trained, want):
    """512 x 152,000 float32 are 297 MB; a process of its own needs 60 MB at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.format(trained=trained, want=want)],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) <= 60, done.stdout
