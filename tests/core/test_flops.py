"""Counted work against the formulas of the cost model, on real networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.flops import FlopCounter, Product, limit_seconds, measured_peaks, peak
from mmalign.text import TextPolicy
from mmalign.types import Trajectory

LAYERS, WIDTH, HIDDEN, VOCABULARY = 3, 32, 48, 100
BODY = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN)
"""Weights of the matrices of a layer: queries, keys, values, output; gate, up, down."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def flops_of(body: Any) -> int:
    with FlopCounter() as counter:
        body()
    return counter.total


def forward_flops(tokens: int) -> int:
    """2 N tokens, 2 L d tokens^2 of causal attention, and the head at every position."""
    attention = 2 * LAYERS * WIDTH * tokens**2
    return 2 * BODY * tokens + attention + 2 * WIDTH * VOCABULARY * tokens


@pytest.mark.parametrize("grad", [True, False])
def test_forward_of_a_decoder(grad: bool) -> None:
    """Exactly the formula, with gradient and without."""
    model, ids = llama(), torch.arange(20).unsqueeze(0)
    with torch.set_grad_enabled(grad):
        found = flops_of(lambda: model(input_ids=ids, use_cache=False))
    assert found == forward_flops(20)


def test_backward_costs_twice_the_forward_pass() -> None:
    """Of every product with a trained weight: one for its input, one for the weight itself.

    The first layer's input, an embedding, needs a gradient too. The kernel of attention counts 2.5
    times its forward pass, since it computes the probabilities anew.
    """
    model, ids = llama(), torch.arange(20).unsqueeze(0)
    logits = model(input_ids=ids, use_cache=False).logits
    found = flops_of(lambda: logits.sum().backward())
    attention = 2 * LAYERS * WIDTH * 20**2
    assert found == 2 * (forward_flops(20) - attention) + 2.5 * attention


def test_backward_of_frozen_weights_costs_one_forward_pass() -> None:
    """LoRA: only the gradient of the inputs passes through the frozen weights.

    Rank 1 on one projection a layer adds 2 (d + d) a token forward, and twice that backward, but
    for what only the first layer's inputs would need.
    """
    config = LoraConfig(r=1, target_modules=["down_proj"])
    model, ids = get_peft_model(llama(), config), torch.arange(20).unsqueeze(0)
    logits = model(input_ids=ids, use_cache=False).logits
    found = flops_of(lambda: logits.sum().backward())
    whole = forward_flops(20) + 1.5 * 2 * LAYERS * WIDTH * 20**2
    first_layer = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN) * 20 + 5 * WIDTH * 20**2
    assert whole - 1.05 * first_layer < found < 1.05 * whole


class Squared(torch.autograd.Function):
    """A product whose backward pass is written by hand, accumulating in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        total = torch.zeros_like(weight)
        total.addmm_(x.T, grad)
        return grad @ weight.T, total


def test_products_inside_custom_functions_are_seen() -> None:
    """[3, 4] x [4, 5], forward and twice backward: 3 * 2 * 60."""
    x = torch.rand(3, 4, requires_grad=True)
    weight = torch.rand(4, 5, requires_grad=True)
    with FlopCounter() as counter:
        Squared.apply(x, weight).sum().backward()
    assert counter.total == 360
    assert {p.shape for p in counter.products} == {(3, 4, 5), (4, 3, 5), (3, 5, 4)}


def test_attention_that_is_causal_counts_half() -> None:
    """1 x 2 heads, 6 positions of width 8: queries and keys 2 * 6 * 6 * 8 a head, values as many.

    A mask that happens to be causal is computed in full.
    """
    q = torch.rand(1, 2, 6, 8)
    full = 2 * 2 * (2 * 6 * 6 * 8)
    causal = functional.scaled_dot_product_attention
    assert flops_of(lambda: causal(q, q, q)) == full
    assert flops_of(lambda: causal(q, q, q, is_causal=True)) == full / 2
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    assert flops_of(lambda: causal(q, q, q, attn_mask=mask)) == full


def test_convolutions_are_seen() -> None:
    """3 x 3 on 4 channels to 5, on 6 x 6 pixels with a border: 2 * 9 * 4 * 5 * 36."""
    layer = torch.nn.Conv2d(4, 5, 3, padding=1)
    assert flops_of(lambda: layer(torch.rand(1, 4, 6, 6))) == 2 * 9 * 4 * 5 * 36


def test_a_shared_prompt_is_computed_once(model: str) -> None:
    """Scoring a group of four long prompts' answers: body and head of P + G R, not of G (P + R).

    The answers' last tokens predict nothing, so the decoder reads P + G (R - 1) positions; and of
    P - 1 of them, the last layer makes keys and values alone.
    """
    policy = TextPolicy(model=model, max_new_tokens=8).load()
    length, group, answer = 120, 4, 5
    draw = torch.Generator().manual_seed(0)
    trajectory = Trajectory(
        mask=torch.ones(group, answer, dtype=torch.bool),
        prompt_of=torch.zeros(group, dtype=torch.int64),
        static={"prompt_ids": [torch.randint(5, 50, (length,), generator=draw)]},
        stepwise={"token": torch.randint(5, 50, (group, answer), generator=draw)},
        outputs=["x"] * group,
    )
    config: Any = policy.model.config
    matrices = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    body = 2 * config.num_hidden_layers * matrices * (length + group * (answer - 1))
    body -= 2 * (matrices - 2 * config.hidden_size**2) * (length - 1)
    head = 2 * config.hidden_size * config.vocab_size * group * answer
    prefix, rest = length**2 / 2, group * (answer * length + answer**2 / 2)
    attention = 4 * config.num_hidden_layers * config.hidden_size * (prefix + rest)
    attention -= 4 * config.hidden_size * (prefix - length)
    with torch.no_grad():
        found = flops_of(lambda: policy.scores(trajectory))
    assert found == pytest.approx(body + head + attention, rel=0.05)


def test_counting_changes_no_bit() -> None:
    """Loss and gradients of a decoder with and without the counter."""
    found = []
    for counted in (False, True):
        model, ids = llama(), torch.arange(20).unsqueeze(0)

        def backward(model: Any = model, ids: Tensor = ids) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

        if counted:
            flops_of(backward)
        else:
            backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_limit_is_a_sum_over_kinds() -> None:
    """100 FLOPs at 10 a second, 60 at 30, and 90 of no peak of its own at the best, 30: 10 + 2 + 3.

    A peak can only be measured where there is a plain product.
    """
    one, two = (Product(name="mm", shape=(2, k, 2), dtype=torch.float32) for k in (3, 4))
    attention = Product(name="attention", shape=(), dtype=torch.float32)
    work = {one: 100, two: 60, attention: 90}
    assert limit_seconds(work, {one: 10.0, two: 30.0}) == pytest.approx(15.0)
    assert measured_peaks({attention: 90}, device=torch.device("cpu")) == {}
    assert measured_peaks(work, device=torch.device("cpu"), number=1).keys() == {one}


def test_a_peak_is_positive() -> None:
    product = Product(name="mm", shape=(64, 64, 64), dtype=torch.float32)
    assert 0.0 < peak(product, device=torch.device("cpu"), seconds=0.001) < 1e16
