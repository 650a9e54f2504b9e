"""Several rewards of recorded pairs: columns, and implicit rewards of another policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import offline, trace

from mmalign.margins import ImplicitRewards
from mmalign.objectives import MODPO, SFT
from mmalign.policy import Policy
from mmalign.references import LoRAOff, NamedLoRA
from mmalign.sources import Preferences, rewards
from mmalign.text import TextPolicy
from mmalign.tinyworld.brief import BriefSums


@pytest.fixture(scope="module")
def aligned(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a LoRA that DPO has trained for a moment."""
    run = offline(model, tmp_path_factory.mktemp("aligned") / "run")
    return str(run.train())


def source_of(policy: Policy, aligned: str) -> Any:
    spec = ImplicitRewards(
        source=Preferences(data=BriefSums(size=3), batch_size=3, rewards=("exact",)),
        policies=(NamedLoRA(path=aligned, name="other"),),
        beta=0.5,
        rows_per_forward=4,
    )
    source = spec.build(policy, seed=1)
    source.read(LoRAOff().build(policy))
    return source


def test_rewards_come_from_columns(model: str) -> None:
    """The brief side is preferred (1, 0), and an exact judge, times 2, gives it 0 to 2."""
    policy = TextPolicy(model=model).load()
    data = BriefSums(size=2, scale=2.0)
    batch = next(iter(Preferences(data=data, rewards=("exact",)).build(policy, seed=0)))
    assert batch.reward.tolist() == [[1.0, 0.0], [0.0, 2.0]] * 2
    outputs = [str(o) for o in batch.trajectory.outputs]
    assert all(outputs[0::2][i] == outputs[1::2][i].split(", ")[-1] for i in (0, 1))


@pytest.mark.parametrize("value", [None, "1", True, float("nan")])
def test_a_wrong_reward_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"in the column 'rejected_exact' .* must be a finite"):
        rewards([{"chosen_exact": 1.0, "rejected_exact": value}], columns=["exact"])


def test_implicit_rewards_by_their_formula(model: str, aligned: str) -> None:
    """0.5 (log p - log p_ref), summed over the steps, behind the columns; without a gradient."""
    policy = offline(model, Path("unused")).policy.load()
    source = source_of(policy, aligned)
    batch = next(iter(source))
    assert batch.reward.shape == (6, 3) and not batch.reward.requires_grad
    other = TextPolicy(model=model, lora=replace_path(policy, aligned)).load()
    with torch.no_grad():
        log_probs = other.scores(batch.trajectory).log_probs
    reference = LoRAOff().build(policy).scores(batch.trajectory)
    torch.testing.assert_close(batch.reference, reference)
    torch.testing.assert_close(batch.reward[:, 2], 0.5 * (log_probs - reference).sum(1))
    assert batch.reward[:, 2].abs().min() > 1e-4


def replace_path(policy: Policy, path: str) -> Any:
    from core_parts import LORA

    return replace(LORA, path=path)


def test_modpo_runs_on_them(model: str, aligned: str, tmp_path: Path) -> None:
    run = offline(model, tmp_path / "run")
    spec = ImplicitRewards(
        source=Preferences(data=BriefSums(size=6), batch_size=4, rewards=("exact",)),
        policies=(NamedLoRA(path=aligned, name="other"),),
    )
    objective = MODPO(weights=(0.5, 0.3, 0.2))
    replace(run, source=spec, objective=objective).train()
    first = trace(tmp_path / "run")[0]
    # At the start D is 0: -log sigmoid(-margin / 0.5), the margin 0.3 (0 - 1) and the implicit one.
    assert first["rewards/others"] == pytest.approx(-0.3, abs=0.2)
    assert "loss" in first


def test_an_objective_without_a_reference_is_refused(
    model: str, aligned: str, tmp_path: Path
) -> None:
    spec = ImplicitRewards(
        source=Preferences(data=BriefSums(size=6)), policies=(NamedLoRA(path=aligned, name="o"),)
    )
    run = replace(offline(model, tmp_path / "run"), source=spec, objective=SFT())
    with pytest.raises(ValueError, match="implicit rewards are relative to a reference"):
        run.build()
    with pytest.raises(ValueError, match="policies is empty"):
        replace(spec, policies=())
