"""What every adapter says its prompts cost, against what its network reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mmalign.types import Trajectory
from tests.conformance import ADAPTERS, Case, sampled

READERS = {"text", "ar_image"} | {name for name in ADAPTERS if name.startswith("lvlm")}


def first_layer(model: nn.Module) -> nn.Module:
    """The first layer of the decoder: the last list of layers, where a vision tower has its own."""
    return [m for name, m in model.named_modules() if name.endswith("layers.0")][-1]


def read(model: nn.Module, score: Any) -> int:
    """Positions of the longest row that the decoder is given."""
    seen: list[int] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], _settings: Any) -> None:
        seen.append(int(inputs[0].shape[1]))

    handle = first_layer(model).register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        score()
    handle.remove()
    return max(seen)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_reader_reads_its_prompt(name: str) -> None:
    """One row of R steps to a prompt of P: P + R - 1 positions, since the last predicts nothing."""
    case: Case = ADAPTERS[name]
    policy = case.spec.load()
    made: Trajectory = sampled(case, policy, num_prompts=2, group_size=1)
    lengths = policy.adapter.prompt_lengths(made)
    assert lengths.shape == (2,) and lengths.dtype == torch.int64
    for row in (0, 1):
        one = made.rows(torch.tensor([row]))
        steps = int(one.mask.sum())
        assert read(policy.model, lambda one=one: policy.scores(one)) == lengths[row] + steps - 1


@pytest.mark.parametrize("name", sorted(ADAPTERS.keys() - READERS - {"text_full"}))
def test_a_denoiser_reads_none(name: str) -> None:
    case = ADAPTERS[name]
    policy = case.spec.load()
    made = sampled(case, policy, num_prompts=2, group_size=1)
    assert policy.adapter.prompt_lengths(made).tolist() == [0, 0]
