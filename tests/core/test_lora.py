"""LoRA: injected in place, told apart by name, readable by peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import LORA
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from mmalign import lora
from mmalign.lora import LoRA

IDS = torch.tensor([[1, 12, 30, 7, 25]])


@pytest.fixture
def network(model: str) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(model).eval()


def disturb(network: nn.Module, name: str) -> None:
    draw = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if lora.belongs(key, name):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))


@torch.no_grad()
def said(network: Any) -> Tensor:
    return network(IDS).logits


def trainable(network: nn.Module) -> set[str]:
    return {k for k, p in network.named_parameters() if p.requires_grad}


def test_attaching_changes_nothing_but_what_trains(network: LlamaForCausalLM) -> None:
    """B = 0, so the outputs are bitwise the base's; two layers of seven matrices of rank 4."""
    before, kind = said(network), type(network)
    lora.attach(network, LORA)
    assert type(network) is kind
    assert torch.equal(said(network), before)
    assert lora.is_fresh(network) and lora.names(network) == ["policy"]
    assert len(trainable(network)) == 2 * 2 * 7
    assert all(lora.belongs(key, "policy") for key in trainable(network))
    assert not any("lm_head" in key for key in trainable(network))
    disturb(network, "policy")
    assert not lora.is_fresh(network)
    assert not torch.equal(said(network), before)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [(("q_proj", "v_proj"), 4), (r"model\.layers\.1\..*mlp.*_proj", 3), ("all-linear", 14)],
)
def test_targets(targets: Any, layers: int, network: LlamaForCausalLM) -> None:
    lora.attach(network, LoRA(rank=2, target_modules=targets))
    assert len(trainable(network)) == 2 * layers


def test_a_model_may_say_what_all_linear_means(network: LlamaForCausalLM) -> None:
    lora.attach(network, LoRA(rank=2), targets=r".*o_proj")
    assert all("o_proj" in key for key in trainable(network)) and len(trainable(network)) == 4


def test_what_cannot_be_attached_is_refused(network: LlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="cannot attach LoRA 'policy' to LlamaForCausalLM"):
        lora.attach(network, LoRA(target_modules=("no_such_layer",)))
    fresh = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="no linear layer"):
        lora.attach(fresh, LoRA())
    lora.attach(network, LORA)
    with pytest.raises(ValueError, match="already carries a LoRA named 'policy'"):
        lora.attach(network, LORA)


def test_off_and_on(network: LlamaForCausalLM) -> None:
    """Off is bitwise the base, also after training and after an exception inside."""
    base = said(network)
    with pytest.raises(ValueError, match="carries no LoRA"), lora.disabled(network):
        pass
    lora.attach(network, LORA)
    disturb(network, "policy")
    tuned = said(network)
    with pytest.raises(KeyError), lora.disabled(network):
        assert torch.equal(said(network), base)
        raise KeyError
    assert torch.equal(said(network), tuned)
    assert trainable(network)


def test_the_scale_is_alpha_over_rank(network: LlamaForCausalLM) -> None:
    """y = W x + (alpha / rank) B A x, here by hand for one layer: 8 / 4 = 2."""
    layer: Any = network.model.layers[0].self_attn.q_proj
    weight = layer.weight.detach().clone()
    lora.attach(network, LORA)
    disturb(network, "policy")
    wrapped: Any = network.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    a, b = (part["policy"].weight for part in (wrapped.lora_A, wrapped.lora_B))
    torch.testing.assert_close(wrapped(x), x @ weight.T + 2.0 * x @ a.T @ b.T)
    assert set(lora.scaling(network, "policy").values()) == {2.0}


def test_saved_and_loaded(network: LlamaForCausalLM, model: str, tmp_path: Path) -> None:
    """By us under any name, and by peft itself: the same logits."""
    from peft import PeftModel

    lora.attach(network, LORA)
    disturb(network, "policy")
    lora.save(network, tmp_path, base=model)
    expected = said(network)
    ours = LlamaForCausalLM.from_pretrained(model).eval()
    lora.load(ours, tmp_path, name="other", trainable=False)
    assert torch.equal(said(ours), expected)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), tmp_path).eval()
    torch.testing.assert_close(said(theirs), expected)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model and config["r"] == 4
    again = LlamaForCausalLM.from_pretrained(model).eval()
    lora.attach(again, LoRA(path=str(tmp_path)))
    assert torch.equal(said(again), expected)
    assert trainable(again) == trainable(network)


def test_a_second_lora_beside_the_first(
    network: LlamaForCausalLM, model: str, tmp_path: Path
) -> None:
    """Loading one as a reference changes neither what is in use nor what trains."""
    other = LlamaForCausalLM.from_pretrained(model).eval()
    lora.attach(other, LoRA(rank=2, alpha=8, name="mine"))
    disturb(other, "mine")
    lora.save(other, tmp_path, name="mine")
    lora.attach(network, LoRA(rank=4, alpha=8, name="first"))
    lora.load(network, tmp_path, name="second", trainable=True)
    disturb(network, "first")
    before, trained = said(network), trainable(network)
    assert lora.merge_name(network) == "second"
    assert all(lora.belongs(key, "second") for key in trained)
    lora.load(network, tmp_path, name="third", trainable=False)
    assert lora.names(network) == ["first", "second", "third"]
    assert lora.merge_name(network) == "second"
    assert torch.equal(said(network), before) and trainable(network) == trained
    assert lora.equal(network, "second", "third") and not lora.equal(network, "first", "third")
    with lora.active(network, "first"):
        assert lora.merge_name(network) == "first"
        assert not torch.equal(said(network), before)
    assert torch.equal(said(network), before) and trainable(network) == trained
    with (
        pytest.raises(ValueError, match=r"no LoRA named 'fourth'; .*'third'"),
        lora.active(network, "fourth"),
    ):
        pass


def test_a_name_that_is_also_a_module(network: LlamaForCausalLM) -> None:
    """A LoRA called "mlp" trains itself and not the model's mlp."""
    lora.attach(network, LoRA(rank=2, name="mlp"))
    assert all("lora_" in key for key in trainable(network))


def test_a_folder_that_does_not_fit_is_refused(
    network: LlamaForCausalLM, model: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"holds no LoRA: adapter_model.safetensors is missing"):
        lora.load(network, tmp_path, name="x", trainable=False)
    lora.attach(network, LORA)
    lora.save(network, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    some = dict(list(whole.items())[:-2])
    save_file(some, path)
    with pytest.raises(ValueError, match=r"26 tensors and its adapter_config.json describes 28"):
        lora.load(LlamaForCausalLM.from_pretrained(model), tmp_path, name="x", trainable=False)
    save_file({**whole, "base_model.model.extra.lora_A.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="does not fit this model"):
        lora.load(LlamaForCausalLM.from_pretrained(model), tmp_path, name="x", trainable=False)
