"""What a run needs: parameters and memory by kind, and how numbers are said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.cost import (
    Memory,
    Parameters,
    amount,
    duration,
    kept_bytes,
    memory,
    parameters_of,
    size,
)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_by_kind(tied: bool) -> None:
    """A vocabulary of 50 by a width of 8; a tied head has no weights of its own.

    A layer has 4 * 64 + 3 * 8 * 12 in its matrices and 2 * 8 in its norms; one norm ends the model.
    """
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    found = parameters_of(LlamaForCausalLM(config))
    body = 2 * (4 * 64 + 3 * 96 + 16) + 8
    assert found == Parameters(embedding=400, head=0 if tied else 400, body=body)
    assert found.total == 400 * (1 if tied else 2) + body


def test_memory_by_kind() -> None:
    """A frozen copy is there twice, a twin on the same weights once; two moments a parameter.

    3 * 4 + 4 = 16 numbers of 4 bytes; only the matrix of 12 is trained.
    """
    layer = nn.Linear(3, 4)
    twin = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    found = memory([layer, copy.deepcopy(layer), twin], [layer.weight], activations=5)
    assert found == Memory(weights=128, gradients=48, optimizer=96, activations=5)
    assert found.total == 277


def test_kept_bytes() -> None:
    """Two products: their inputs, [2, 3] and [2, 4], are kept, the weights are there anyway."""
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 5, bias=False)
    weights = [first.weight, second.weight]
    x = torch.rand(2, 3)
    assert kept_bytes(lambda: second(first(x)), apart_from=weights) == 4 * (6 + 8)
    with torch.no_grad():
        assert kept_bytes(lambda: second(first(x)), apart_from=weights) == 0


def test_what_is_kept_twice_counts_once() -> None:
    """The exponential's result is kept by itself and by the product that follows: 10 numbers."""
    x = torch.rand(10, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x.exp()
        return y * y

    assert kept_bytes(forward, apart_from=[x]) == 40


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (amount(4.78e10, "FLOP"), "47.8 GFLOP"),
        (amount(1.2e13, "FLOP/s"), "12 TFLOP/s"),
        (amount(12.0, "FLOP"), "12 FLOP"),
        (size(1.5 * 2**30), "1.5 GiB"),
        (amount(9.996e11, "FLOP"), "1 TFLOP"),
        (size(3 * 2**20), "3 MiB"),
        (size(1010 * 2**20), "0.986 GiB"),
        (size(100), "100 B"),
        (duration(0.0213), "0.0213 s"),
        (duration(98.4), "98.4 s"),
        (duration(210.0), "3.5 min"),
        (duration(18720.0), "5.2 h"),
        (duration(259200.0), "3.0 d"),
    ],
)
def test_human_units(said: str, expected: str) -> None:
    assert said == expected
