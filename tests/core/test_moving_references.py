"""References that are averages: of several models, and of the policy as it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import core_parts
import pytest
import torch
from core_parts import offline, trace, training
from safetensors.torch import load_file
from torch import Tensor

from mmalign import lora
from mmalign.invariants import Violation
from mmalign.log import RunFolder
from mmalign.lora import LoRA
from mmalign.objectives import GRPO, SimPO
from mmalign.policy import Policy
from mmalign.references import EMA, NamedLoRA, NoReference, Recorded, Soup, Sync
from mmalign.run import Evaluation, WeightEMA
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Trajectory


def policy_of(model: str, **settings: Any) -> Policy:
    return TextPolicy(
        model=model, **{"lora": core_parts.LORA, "max_new_tokens": 40, **settings}
    ).load()


def disturb(policy: Policy, *, seed: int = 0, size: float = 0.1) -> None:
    """Move everything that is trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))


def scores(policy: Policy, trajectory: Trajectory) -> Tensor:
    with torch.no_grad():
        return policy.adapter.scores(policy.model, trajectory).log_probs


@pytest.fixture(scope="module")
def trajectory(model: str) -> Trajectory:
    policy = policy_of(model)
    pairs = TinyWorld(task="arithmetic", size=3).preferences()
    return policy.adapter.encode(
        [p.prompt for p in pairs],
        [[p.chosen, p.rejected] for p in pairs],
        generators=[torch.Generator() for _ in pairs],
    )


def added(policy: Policy) -> dict[str, Tensor]:
    """What the policy's LoRA adds to each weight, as peft itself says."""
    name = lora.merge_name(policy.model)
    return {
        key: layer.get_delta_weight(name).detach().clone()
        for key, layer in policy.model.named_modules()
        if lora.carries(layer)
    }


def merged(model: str, change: Mapping[str, Tensor]) -> Policy:
    """The base model with ``change`` added to its weights."""
    policy = policy_of(model, lora=None)
    with torch.no_grad():
        for key, value in change.items():
            policy.model.get_parameter(f"{key}.weight").add_(value)
    return policy


def saved_lora(model: str, folder: Path, *, sign: float = 1.0, alpha: int = 8) -> str:
    """A LoRA of an earlier stage; a negative sign turns both factors, which adds the same."""
    torch.manual_seed(7)
    policy = policy_of(model, lora=LoRA(rank=2, alpha=alpha))
    disturb(policy, seed=9, size=0.3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.mul_(sign)
    policy.save(folder)
    return str(folder)


# ---- soups -----------------------------------------------------------------------------------


def test_a_soup_of_loras_averages_what_they_make(
    model: str, trajectory: Trajectory, tmp_path: Path
) -> None:
    """(A, B) and (-A, -B) add the same: their average is either, and averaged factors add nothing.

    With a fresh start at half, half of it is added: the LoRA with alpha 4 instead of 8. Ranks may
    differ from the policy's (2 and 4).
    """
    path = saved_lora(model, tmp_path / "one")
    turned = saved_lora(model, tmp_path / "turned", sign=-1.0)
    half = saved_lora(model, tmp_path / "half", alpha=4)
    policy = policy_of(model)
    base = scores(policy, trajectory)
    whole = NamedLoRA(path=path).build(policy_of(model)).scores(trajectory)
    assert float((whole - base).abs().max()) > 0.1
    soup = Soup(of=(path, turned), weights=(0.0, 0.5, 0.5)).build(policy)
    torch.testing.assert_close(soup.scores(trajectory), whole, rtol=0, atol=1e-4)
    salsa = Soup(of=(path,)).build(policy)
    expected = NamedLoRA(path=half).build(policy_of(model)).scores(trajectory)
    torch.testing.assert_close(salsa.scores(trajectory), expected, rtol=0, atol=1e-4)
    assert not salsa.starts_at_policy
    before = salsa.scores(trajectory)
    assert set(policy.trainable()) == set(policy_of(model).trainable())
    disturb(policy)
    assert torch.equal(salsa.scores(trajectory), before)
    assert salsa.fingerprint() != soup.fingerprint()


def test_a_soup_with_all_weight_on_the_start_is_the_start(
    model: str, trajectory: Trajectory, tmp_path: Path
) -> None:
    """SALSA with alpha 1 is the method without it; here the start is itself a LoRA."""
    path, other = saved_lora(model, tmp_path / "a"), saved_lora(model, tmp_path / "b", alpha=2)
    policy = policy_of(model, lora=LoRA(path=path))
    soup = Soup(of=(other,), weights=(1.0, 0.0)).build(policy)
    assert soup.starts_at_policy
    torch.testing.assert_close(
        soup.scores(trajectory), scores(policy, trajectory), rtol=0, atol=1e-4
    )


def test_a_soup_of_whole_models(model: str, tmp_path: Path) -> None:
    """A quarter of the start and three quarters of another, number by number; the run trains."""
    other = policy_of(model, lora=None)
    disturb(other, seed=3)
    other.save(tmp_path / "other")
    run = offline(model, tmp_path / "run")
    run = training(replace(run, policy=replace(run.policy, lora=None)), steps=1)
    soup = Soup(of=(str(tmp_path / "other"),), weights=(0.25, 0.75))
    trainer = replace(run, reference=soup).build()
    own = dict(trainer.policy.model.named_parameters())
    theirs = dict(other.model.named_parameters())
    for name, parameter in trainer.reference.network.named_parameters():
        expected = 0.25 * own[name] + 0.75 * theirs[name]
        torch.testing.assert_close(parameter, expected.detach(), rtol=1e-6, atol=1e-6)
        assert not parameter.requires_grad
    trainer.train()
    assert len(trace(run.output)) == 1


def test_what_cannot_be_averaged_is_refused(model: str, tmp_path: Path) -> None:
    """Every message says what to do; nothing is averaged that is not alike."""
    path = saved_lora(model, tmp_path / "lora")
    with pytest.raises(ValueError, match="names no other model"):
        Soup(of=())
    for weights in ((0.5,), (0.5, 0.6), (0.4, 0.3, 0.3)):
        with pytest.raises(ValueError, match="must be 2 numbers that sum to 1"):
            Soup(of=(path,), weights=weights)
    full = policy_of(model, lora=None)
    with pytest.raises(ValueError, match="holds a LoRA, and this policy trains every parameter"):
        Soup(of=(path,)).build(full)
    with pytest.raises(ValueError, match=r"holds no LoRA: adapter_model.safetensors is missing"):
        Soup(of=(model,)).build(policy_of(model))
    full.model.get_input_embeddings().weight.requires_grad_(False)
    other = policy_of(model, lora=None)
    disturb(other)
    other.save(tmp_path / "moved")
    full.like = lambda folder: policy_of(folder, lora=None)
    with pytest.raises(ValueError, match=r"differs in 1 parameters that.*not train.*embed"):
        Soup(of=(str(tmp_path / "moved"),)).build(full)
    from transformers import LlamaForCausalLM

    config = other.model.config
    config.num_hidden_layers = 1
    LlamaForCausalLM(config).save_pretrained(tmp_path / "shallow")
    other.adapter.tokenizer.save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"another architecture: 9 parameters are missing"):
        Soup(of=(str(tmp_path / "shallow"),)).build(full)


# ---- following -------------------------------------------------------------------------------


def test_an_average_of_loras_is_one_of_products(model: str, trajectory: Trajectory) -> None:
    """With decay 1/2, after D1 then D2: (0 / 2 + D1 / 2) / 2 + D2 / 2, added to the base's weights.

    Checked against a model whose weights are changed by peft's own products; the average of the
    factors is far from it.
    """
    policy = policy_of(model)
    reference = EMA(decay=0.5).build(policy)
    assert torch.equal(reference.scores(trajectory), scores(policy, trajectory))
    assert reference.starts_at_policy
    products = []
    for step in (1, 2):
        disturb(policy, seed=step, size=0.3)
        products.append(added(policy))
        reference.after_update(step)
    first, second = products
    average = {key: first[key] / 4 + second[key] / 2 for key in first}
    found = reference.scores(trajectory)
    expected = scores(merged(model, average), trajectory)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert float((found - scores(policy, trajectory)).abs().max()) > 0.1
    carried = {id(p) for p in policy.model.parameters()}
    assert all(id(p) in carried for p in reference.network.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_average_of_weights(model: str, dtype: str) -> None:
    """A weight of 1 follows one of 1.004 at a share of 1/8: after two updates 1 + 0.004 (15/64).

    bfloat16 knows no number between 1 and 1.0078 and would stay at 1; the average does not.
    """
    policy = policy_of(model, lora=None, dtype=dtype)
    weight = policy.model.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight.fill_(1.0)
    reference = EMA(decay=0.875).build(policy)
    with torch.no_grad():
        weight.fill_(1.0078125)
    reference.after_update(1)
    reference.after_update(2)
    value = reference.tensors()["model.norm.weight"]
    torch.testing.assert_close(value, torch.full_like(value, 1 + 0.0078125 * 15 / 64))
    network = reference.network.get_parameter("model.norm.weight")
    assert torch.equal(network.float(), value.to(weight.dtype).float())


@pytest.mark.parametrize("settings", [{}, {"lora": None}])
def test_a_synced_reference(settings: dict[str, Any], model: str, trajectory: Trajectory) -> None:
    """Every second update, wholly: it stays after the first, and is the policy after the second."""
    policy = policy_of(model, **settings)
    start = scores(policy, trajectory)
    reference = Sync(alpha=1.0, every=2).build(policy)
    disturb(policy)
    reference.after_update(1)
    assert torch.equal(reference.scores(trajectory), start) and reference.moves == 0
    reference.after_update(2)
    mine = scores(policy, trajectory)
    torch.testing.assert_close(reference.scores(trajectory), mine, rtol=0, atol=1e-4)
    assert float((mine - start).abs().max()) > 0.1 and reference.moves == 1


def test_mixing_in_six_tenths(model: str) -> None:
    """TR-DPO's soft update of a weight from 1 towards 2: 1.6, then 1.84."""
    policy = policy_of(model, lora=None)
    weight = policy.model.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight.fill_(1.0)
    reference = Sync(every=1).build(policy)
    with torch.no_grad():
        weight.fill_(2.0)
    for step, expected in ((1, 1.6), (2, 1.84)):
        reference.after_update(step)
        found = reference.network.get_parameter("model.norm.weight")
        torch.testing.assert_close(found, torch.full_like(found, expected))


def test_settings_out_of_range_are_refused(model: str) -> None:
    for make in (lambda: EMA(decay=1.0), lambda: Sync(alpha=0.0), lambda: Sync(every=0)):
        with pytest.raises(ValueError, match=r"must be in .* 1"):
            make()
    with pytest.raises(ValueError, match=r"decay=1.5 must be in"):
        WeightEMA(decay=1.5)
    policy = policy_of(model)
    policy.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="parameters outside the LoRA are trained"):
        EMA().build(policy)


def test_scores_of_what_moves_are_not_recorded(model: str, tmp_path: Path) -> None:
    spec = Recorded(folder=str(tmp_path), of=Sync())
    with pytest.raises(ValueError, match="Sync moves while the policy is trained"):
        spec.build(policy_of(model))


def test_a_run_says_whether_its_reference_followed(model: str, tmp_path: Path) -> None:
    """One that should and does, one whose turn never comes, and one that fails to follow."""
    run = training(replace(offline(model, tmp_path / "a"), reference=EMA(decay=0.5)), steps=2)
    trainer = run.build()
    trainer.train()
    line = trainer.watch.check(trainer.policy)
    assert line.ok and line.name == "reference follows the policy"
    rare = replace(run, reference=Sync(every=100), output=str(tmp_path / "b")).build()
    rare.train()
    assert rare.watch.check(rare.policy).name == "reference has not moved"
    stuck = replace(run, output=str(tmp_path / "c")).build()
    stuck.reference.followed.mix = lambda share: None
    with pytest.raises(Violation, match="reference follows the policy: it moved by 0 nats"):
        stuck.train()


def test_no_reference(model: str, tmp_path: Path) -> None:
    """Refused where the loss compares with one, or has a KL term; taken where nothing reads it."""
    run = replace(offline(model, tmp_path / "run"), reference=NoReference())
    with pytest.raises(ValueError, match="DPO compares the policy with its reference"):
        run.build()
    with pytest.raises(ValueError, match=r"GRPO compares"):
        replace(run, objective=GRPO(beta=0.1)).build()
    assert replace(run, objective=SimPO()).build().reference is None
    with pytest.raises(ValueError, match="is no reference"):
        Recorded(folder=str(tmp_path), of=NoReference()).build(policy_of(model))


# ---- the average of the policy's own weights -------------------------------------------------


@pytest.fixture
def averaged(model: str, tmp_path: Path) -> Iterator[Any]:
    """Three updates at a high learning rate, judged after each, with and without an average."""
    evaluation = Evaluation(
        data=TinyWorld(task="arithmetic", split="heldout", size=4),
        judges={"letters": core_parts.EarlyLetters()},
        every=1,
    )
    run = replace(offline(model, tmp_path / "plain"), evaluation=evaluation)
    run = replace(run, policy=replace(run.policy, max_new_tokens=30))
    run = training(run, learning_rate=0.1)
    mean = replace(training(run, ema=WeightEMA(decay=0.9)), output=str(tmp_path / "mean"))
    trainers = [run.build(), mean.build()]
    for trainer in trainers:
        trainer.train()
    yield trainers


def test_an_average_of_the_policy_is_judged_and_saved(averaged: Any) -> None:
    """Weights 0, w1, w2, w3 with decays 2/11, 3/12, 4/13; training itself goes on without it."""
    plain, mean = averaged
    assert trace(plain.run.output) == trace(mean.run.output)
    assert core_parts.same(
        {k: p.data for k, p in plain.parameters.items()},
        {k: p.data for k, p in mean.parameters.items()},
    )
    judged = [RunFolder(t.folder.path).read("evaluations.jsonl") for t in averaged]
    assert judged[0][0]["judge"] == judged[1][0]["judge"]
    assert judged[0][-1]["judge"] != judged[1][-1]["judge"]
    average = mean.followers["ema"].tensors()
    saved = load_file(Path(mean.run.output) / "model" / "adapter_model.safetensors")
    assert len(saved) == len(average)
    for name, value in average.items():
        key = name.replace("model.", "base_model.model.", 1).replace(".policy.weight", ".weight")
        torch.testing.assert_close(saved[key], value)
        assert not torch.equal(value, mean.parameters[name])


def test_the_first_averages(model: str) -> None:
    """A weight that is 0, then 11, 11: 11 (1 - 2/11) = 9, then 9 (3/12) + 11 (9/12) = 10.5."""
    from mmalign.ema import AveragedWeights

    weight = torch.nn.Parameter(torch.zeros(1))
    average = AveragedWeights(
        {"w": weight, "critic.v": torch.nn.Parameter(torch.ones(1))}, WeightEMA()
    )
    weight.data.fill_(11.0)
    for step, expected in ((1, 9.0), (2, 10.5)):
        average.after_update(step)
        torch.testing.assert_close(average.tensors()["w"], torch.tensor([expected]))
    with average.used():
        assert weight.item() == pytest.approx(10.5)
    assert weight.item() == 11.0 and set(average.tensors()) == {"w"}
