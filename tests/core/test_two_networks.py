"""What is read from two networks at once: token-level DPO's divergences, and critical steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import LORA, offline, rollouts, trace, training
from test_references import disturb, policy_of, trajectory_of
from torch import Tensor, nn

from mmalign.critical import Critical, CriticalSource
from mmalign.demonstrations import Demonstrations
from mmalign.lora import LoRA
from mmalign.objectives import DPO, TDPO2, CriticalDPO
from mmalign.policy import Policy
from mmalign.references import Frozen, LoRAOff, NamedLoRA, Recorded
from mmalign.run import ReferenceSpec
from mmalign.selectors import AllPairs
from mmalign.sources import Preferences
from mmalign.text import TextPolicy
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Trajectory

DATA = TinyWorld(task="arithmetic", size=6)


@pytest.fixture(scope="module")
def loras(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The folders of two LoRAs on the model."""
    folders = []
    for seed in (9, 10):
        policy = policy_of(model, lora=LoRA(rank=2, alpha=8))
        disturb(policy, seed=seed)
        folders.append(tmp_path_factory.mktemp("lora"))
        policy.save(folders[-1])
    return str(folders[0]), str(folders[1])


@torch.no_grad()
def log_table(network: nn.Module, trajectory: Trajectory, row: int) -> Tensor:
    """``[n, V]`` log-probs of all symbols at the n scored steps of a row."""
    prompt = trajectory.static["prompt_ids"][int(trajectory.prompt_of[row])]
    tokens = trajectory.stepwise["token"][row][trajectory.mask[row]]
    ids = torch.cat([prompt, tokens]).unsqueeze(0)
    logits = network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("kind", ["frozen", "lora_off", "named_lora"])
def test_the_forward_kl_to_every_reference_with_a_network(
    model: str, loras: tuple[str, str], kind: str
) -> None:
    """0 at the start, then the sum of q (log q - log p) over all symbols; the reference gets no
    gradient and the policy does."""
    path = loras[0] if kind == "named_lora" else None
    specs: dict[str, ReferenceSpec] = {
        "frozen": Frozen(), "lora_off": LoRAOff(), "named_lora": NamedLoRA(path=str(path)),
    }  # fmt: skip
    policy = policy_of(model, lora=replace(LORA, path=path))
    network = specs[kind].build(policy).network  # type: ignore[attr-defined]
    trajectory = trajectory_of(policy)
    want = frozenset({"kl_forward"})
    start = policy.scores(trajectory, want=want, against=network).kl_forward
    assert start is not None and float(start.detach().abs().max()) < 1e-5
    disturb(policy)
    found = policy.scores(trajectory, want=want, against=network).kl_forward
    assert found is not None and not found[~trajectory.mask].any()
    log_p, log_q = (log_table(n, trajectory, 1) for n in (policy.model, network))
    expected = (log_q.exp() * (log_q - log_p)).sum(1)
    torch.testing.assert_close(found[1][trajectory.mask[1]], expected, rtol=1e-3, atol=1e-5)
    found.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.trainable().values())
    own = {id(p) for p in policy.trainable().values()}
    assert all(p.grad is None for p in network.parameters() if id(p) not in own)


def test_token_level_dpo_trains(model: str, tmp_path: Path) -> None:
    """log 2 and divergences of 0 at first, both sides' above 0 later; what is recorded is refused.

    The rejected side's first two updates see a gradient of its divergence, so they differ from
    DPO's.
    """
    run = training(replace(offline(model, tmp_path / "tdpo"), objective=TDPO2(beta=0.5)))
    run.train()
    found = trace(run.output)
    assert found[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert found[0]["kl/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert found[-1]["kl/chosen"] > 1e-3 and found[-1]["kl/rejected"] > 1e-3
    replace(run, objective=DPO(beta=0.5), output=str(tmp_path / "dpo")).train()
    assert trace(tmp_path / "dpo")[-1]["loss"] != pytest.approx(found[-1]["loss"], abs=1e-4)
    recorded = replace(run, reference=Recorded(folder=str(tmp_path / "scores")))
    with pytest.raises(ValueError, match=r"needs a reference that is a network .*not recorded"):
        recorded.build()


def weighed_by(
    policy: Policy, loras: tuple[str, str], **settings: Any
) -> tuple[CriticalSource, Critical]:
    spec = Critical(
        of=Preferences(data=DATA, batch_size=3, shuffle=False),
        positive=loras[0],
        negative=loras[1],
        **settings,
    )
    return spec.build(policy, seed=0), spec


def test_rejected_steps_weigh_one_minus_their_score(
    model: str, loras: tuple[str, str], tmp_path: Path
) -> None:
    """Against whole tables of logits; chosen sides weigh 1; recorded scores are the same ones."""
    policy = policy_of(model)
    source, spec = weighed_by(policy, loras, strength=0.5)
    batch = next(iter(source))
    assert batch.pairs is not None and batch.pair_weight is not None
    assert torch.equal(batch.pair_weight[:, 0], batch.weight[batch.pairs[:, 0]])
    networks = [
        NamedLoRA(path=path, name=name).build(policy).network
        for path, name in zip(loras, "ab", strict=True)
    ]
    for pair, (_, row) in enumerate(batch.pairs.tolist()):
        mask = batch.trajectory.mask[row]
        z_p, z_n = (log_table(n, batch.trajectory, row) for n in networks)
        table = (1.5 * z_p - 0.5 * z_n).log_softmax(1)
        tokens = batch.trajectory.stepwise["token"][row][mask].unsqueeze(1)
        expected = 1 - table.gather(1, tokens).squeeze(1).exp()
        weight = batch.pair_weight[pair, 1]
        torch.testing.assert_close(weight[mask], expected, rtol=1e-3, atol=1e-4)
        assert not weight[~mask].any()
    assert batch.metrics["critical/weight"][1] == float(batch.weight[batch.pairs[:, 1]].sum())
    recording = replace(spec, folder=str(tmp_path)).build(policy, seed=0)
    for _ in range(2):
        again = next(iter(recording)).pair_weight
        assert again is not None
        torch.testing.assert_close(again[: len(batch.pair_weight)], batch.pair_weight)
        recording = replace(spec, folder=str(tmp_path)).build(policy, seed=0)


def test_critical_dpo_trains(model: str, loras: tuple[str, str], tmp_path: Path) -> None:
    run = offline(model, tmp_path / "critical")
    source = Critical(of=run.source, positive=loras[0], negative=loras[1])
    replace(run, objective=CriticalDPO(beta=0.5), source=source).train()
    found = trace(run.output)
    assert found[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert 0 < found[0]["critical/weight"] < 1 and found[-1]["loss"] < 0.69


def test_critical_steps_of_pairs_that_the_reference_sampled(
    model: str, loras: tuple[str, str]
) -> None:
    """The run's reference reaches the source whose pairs are weighed."""
    policy = TextPolicy(model=model, lora=LORA, max_new_tokens=6).load()
    settings = {"num_generations": 3, "reference_generations": 1, "selector": AllPairs()}
    spec = Critical(of=rollouts(**settings), positive=loras[0], negative=loras[1])
    source = spec.build(policy, seed=0)
    source.read(LoRAOff().build(policy))
    batch = next(iter(source))
    assert batch.from_reference is not None and batch.from_reference.any()
    assert batch.pairs is not None and len(batch.pairs) and batch.pair_weight is not None
    weights = batch.pair_weight[:, 1][batch.trajectory.mask[batch.pairs[:, 1]]]
    assert float(weights.max()) <= 1 and float(weights.min()) < 0.9


def test_what_has_no_lora_is_refused(model: str, loras: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="holds no LoRA"):
        weighed_by(policy_of(model), (loras[0], "nowhere"))
    with pytest.raises(ValueError, match="needs a policy that trains a LoRA"):
        weighed_by(TextPolicy(model=model).load(), loras)
    with pytest.raises(ValueError, match="strength=-1"):
        Critical(of=Preferences(data=DATA), positive="a", negative="b", strength=-1.0)


def test_either_side_of_pairs_can_be_imitated(model: str) -> None:
    """A model of wrong outputs learns from the rejected sides, under the prompt they answered."""
    policy, pairs = policy_of(model), DATA.preferences()
    for side in ("chosen", "rejected"):
        spec = Demonstrations(data=DATA, batch_size=2, shuffle=False, of=side)  # type: ignore[arg-type]
        batch = next(iter(spec.build(policy, seed=0)))
        assert batch.trajectory.outputs == [getattr(pair, side) for pair in pairs[:2]]
        assert batch.reward.tolist() == [1.0, 1.0] and batch.pairs is None
