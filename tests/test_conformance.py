"""Every adapter with every objective it admits, through the same invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmalign import invariants, lora
from mmalign.policy import Policy, ValueHead
from mmalign.protocols import Objective
from mmalign.references import Frozen, LoRAOff
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Batch, Trajectory
from tests.conformance import (
    ADAPTERS,
    COMBINATIONS,
    OBJECTIVES,
    REFUSED,
    Case,
    batch_of,
    generators,
    prompts_of,
    sampled,
    scores_of,
    with_scores,
)

SAMPLED: dict[str, Trajectory] = {}


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    """One policy an adapter, loaded once."""
    return {}


def policy_of(name: str, policies: dict[str, Policy]) -> Policy:
    """The policy of a case with a critic whose values are not all 0."""
    if name not in policies:
        torch.manual_seed(0)
        policy = ADAPTERS[name].spec.load()
        policy.scorer.critic = ValueHead(policy.adapter.feature_size)
        torch.nn.init.normal_(policy.scorer.critic.value.weight, std=0.1)
        policies[name] = policy
    return policies[name]


def sampled_once(name: str, policy: Policy) -> Trajectory:
    """The groups that every objective of a case is tried on: sampling is the same for all."""
    if name not in SAMPLED:
        SAMPLED[name] = sampled(ADAPTERS[name], policy)
    return SAMPLED[name]


def credited(policy: Policy, trajectory: Trajectory, objective: Objective) -> Batch:
    """A batch of groups of three, ready for the loss."""
    return objective.credit(with_scores(policy, batch_of(trajectory), objective))


def gradient(policy: Policy, batch: Batch, objective: Objective, **cut: int | None) -> Tensor:
    """The gradient of the batch's loss, summed over its pieces, as one vector."""
    policy.scorer.zero_grad()
    for piece in batch.microbatches(
        rows=cut.get("rows"), steps=cut.get("steps"), additive_over=objective.additive_over
    ):
        scores = scores_of(policy, piece.trajectory, objective)
        objective.loss(scores, piece).total.backward()
    found = [
        torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
        for p in policy.trainable().values()
    ]
    policy.scorer.zero_grad()
    return torch.cat(found)


def loss_of(policy: Policy, batch: Batch, objective: Objective) -> float:
    """The loss of the whole batch."""
    with torch.no_grad():
        return float(objective.loss(scores_of(policy, batch.trajectory, objective), batch).total)


def close(first: Tensor, second: Tensor, relative: float = 2e-4) -> bool:
    """Whether two gradients agree, relative to their size."""
    return float((first - second).norm()) <= relative * float(first.norm()) + 1e-9


def padded(trajectory: Trajectory, extra: int = 2) -> Trajectory:
    """The same rows with ``extra`` more masked steps."""

    def grow(value: Tensor) -> Tensor:
        filler = value[:, -1:].expand(-1, extra, *value.shape[2:])
        return torch.cat([value, filler], 1)

    mask = torch.cat([trajectory.mask, torch.zeros(len(trajectory), extra, dtype=torch.bool)], 1)
    return replace(
        trajectory, mask=mask, stepwise={k: grow(v) for k, v in trajectory.stepwise.items()}
    )


@pytest.mark.parametrize("name", ADAPTERS)
class TestAdapter:
    """What holds for an adapter whatever the objective."""

    def test_shape_and_gradient(self, name: str, policies: dict[str, Policy]) -> None:
        """Log-probs are [B, T] float32, 0 where masked, and reach the trained parameters."""
        policy = policy_of(name, policies)
        trajectory = sampled(ADAPTERS[name], policy)
        scores = policy.scores(trajectory)
        assert scores.log_probs.shape == trajectory.mask.shape
        assert scores.log_probs.dtype == torch.float32
        assert not torch.any(scores.log_probs[~trajectory.mask])
        scores.log_probs.sum().backward()
        assert invariants.gradient_arrives(policy.trainable()).ok
        policy.scorer.zero_grad()

    def test_scoring_is_a_function(self, name: str, policies: dict[str, Policy]) -> None:
        """Scoring twice is bit-identical."""
        policy = policy_of(name, policies)
        trajectory = sampled(ADAPTERS[name], policy)
        with torch.no_grad():
            first = policy.scores(trajectory).log_probs
            assert torch.equal(first, policy.scores(trajectory).log_probs)

    def test_seed_in_trajectory_out(self, name: str, policies: dict[str, Policy]) -> None:
        """The same generators give the same trajectory."""
        policy = policy_of(name, policies)
        first, second = (sampled(ADAPTERS[name], policy) for _ in range(2))
        assert torch.equal(first.mask, second.mask)
        for key, value in first.stepwise.items():
            assert torch.equal(value, second.stepwise[key]), key

    def test_a_row_knows_nothing_of_its_batch(self, name: str, policies: dict[str, Policy]) -> None:
        """A prompt sampled alone gives what it gives in company (float noise in latents apart)."""
        policy, case = policy_of(name, policies), ADAPTERS[name]
        together = sampled(case, policy)
        alone = policy.sample(
            prompts_of(case, 2)[1:], group_size=3, generators=generators(2, "sample")[1:]
        )
        for key, value in alone.stepwise.items():
            other = together.stepwise[key][3:]
            width = min(value.shape[1], other.shape[1])
            kept = alone.mask[:, :width]
            assert torch.allclose(
                value[:, :width][kept].float(), other[:, :width][kept].float(), atol=1e-4
            ), key

    def test_padding_is_invisible(self, name: str, policies: dict[str, Policy]) -> None:
        """Further masked steps change no log-prob."""
        policy = policy_of(name, policies)
        trajectory = sampled(ADAPTERS[name], policy)
        with torch.no_grad():
            plain = policy.scores(trajectory).log_probs
            wide = policy.scores(padded(trajectory)).log_probs
        assert torch.allclose(plain, wide[:, : plain.shape[1]], atol=1e-5)
        assert not torch.any(wide[:, plain.shape[1] :])

    def test_rows_are_independent(self, name: str, policies: dict[str, Policy]) -> None:
        """Permuted and subset rows have the log-probs they had."""
        policy = policy_of(name, policies)
        trajectory = sampled(ADAPTERS[name], policy)
        order = torch.tensor([4, 1, 5, 0])
        with torch.no_grad():
            whole = policy.scores(trajectory).log_probs
            part = policy.scores(trajectory.rows(order)).log_probs
        assert torch.allclose(whole[order], part, atol=2e-5)

    def test_reference_is_the_start(self, name: str, policies: dict[str, Policy]) -> None:
        """The default reference agrees with the untrained policy: KL 0."""
        policy = policy_of(name, policies)
        spec = LoRAOff() if lora.names(policy.model) else Frozen()
        trajectory = sampled(ADAPTERS[name], policy)
        reference = spec.build(policy)
        with torch.no_grad():
            mine = policy.scores(trajectory).log_probs
        assert torch.allclose(mine, reference.scores(trajectory), atol=1e-5)

    def test_window_of_steps(self, name: str, policies: dict[str, Policy]) -> None:
        """Separable steps are scored apart; others refuse."""
        policy, case = policy_of(name, policies), ADAPTERS[name]
        trajectory = sampled(case, policy)
        assert trajectory.separable == case.separable
        if not case.separable:
            with pytest.raises(ValueError, match="depend on each other"):
                trajectory.steps(slice(0, 1))
            return
        with torch.no_grad():
            whole = policy.scores(trajectory).log_probs
            part = policy.scores(trajectory.steps(slice(0, 1))).log_probs
        assert torch.allclose(whole[:, :1], part, atol=1e-5)

    def test_sampling_records_its_log_probs(self, name: str, policies: dict[str, Policy]) -> None:
        """The ratio of what was just sampled is 1; a bound has no log-prob to record."""
        policy = policy_of(name, policies)
        trajectory = sampled(ADAPTERS[name], policy)
        if policy.likelihood == "bound":
            assert trajectory.log_probs is None
            return
        with torch.no_grad():
            found = policy.scores(trajectory).log_probs
        assert trajectory.log_probs is not None
        assert ((found - trajectory.log_probs).exp() - 1).abs().max() < 1e-4

    def test_recorded_outputs(self, name: str, policies: dict[str, Policy]) -> None:
        """Recorded pairs are encoded; a path says that it cannot, and what to do."""
        policy, case = policy_of(name, policies), ADAPTERS[name]
        pairs = TinyWorld(task=case.task, size=2, seed=5).preferences()
        prompts = [case.asked(p.prompt) for p in pairs]
        outputs = [[case.drawn(p.chosen), case.drawn(p.rejected)] for p in pairs]
        if not case.encodes:
            with pytest.raises(ValueError, match="elbo"):
                policy.adapter.encode(prompts, outputs, generators=generators(2))
            return
        trajectory = policy.adapter.encode(prompts, outputs, generators=generators(2))
        assert len(trajectory) == 4
        with torch.no_grad():
            found = policy.scores(trajectory).log_probs
        assert torch.all(torch.isfinite(found)) and torch.all(found[trajectory.mask] <= 1e-6)


@pytest.mark.parametrize(("name", "objective_name"), COMBINATIONS)
def test_combination(name: str, objective_name: str, policies: dict[str, Policy]) -> None:
    """What holds for every admitted adapter and objective.

    One test, since all of it is about the same batch: its gradient is computed once and compared
    with that of its pieces and of its padded self.
    """
    policy, objective = policy_of(name, policies), OBJECTIVES[objective_name]
    trajectory = sampled_once(name, policy)
    batch = credited(policy, trajectory, objective)
    first_update(policy, batch, objective, objective_name)
    whole = gradient(policy, batch, objective)
    assert float(whole.norm()) > 0
    pieces_add_up(policy, batch, objective, whole)
    order_of_rows_does_not_matter(policy, batch, objective)
    # Credit may have dropped rows (ties), so what is padded is what it was given.
    wide = credited(policy, padded(trajectory), objective)
    assert wide.denominator == batch.denominator
    assert close(whole, gradient(policy, wide, objective)), "masked steps count"


def first_update(policy: Policy, batch: Batch, objective: Objective, objective_name: str) -> None:
    """Landmarks: log 2 a pair for DPO, ratio 1 for the clipped ones."""
    with torch.no_grad():
        scores = scores_of(policy, batch.trajectory, objective)
        loss = objective.loss(scores, batch)
    if batch.behaviour is not None:
        log_ratio = torch.where(batch.trajectory.mask, scores.log_probs - batch.behaviour, 0.0)
        assert float(log_ratio.abs().max()) < 1e-5
    mean = float(loss.total) / batch.denominator
    if objective_name in ("dpo", "d3po", "spo"):
        assert mean == pytest.approx(math.log(2), abs=1e-5)
    if objective_name == "ipo":
        assert mean == pytest.approx(1 / (4 * 0.1**2), rel=1e-4)
    assert math.isfinite(mean)


def pieces_add_up(policy: Policy, batch: Batch, objective: Objective, whole: Tensor) -> None:
    """Microbatches, and windows of steps where allowed, give the whole batch's gradient."""
    assert close(whole, gradient(policy, batch, objective, rows=2))
    if objective.additive_over != "group" and batch.trajectory.separable:
        assert close(whole, gradient(policy, batch, objective, rows=3, steps=2))


def order_of_rows_does_not_matter(policy: Policy, batch: Batch, objective: Objective) -> None:
    """A permuted batch has the same loss."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    first, second = (loss_of(policy, b, objective) for b in (batch, batch.rows(order)))
    assert second == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("name", "objective_name"), REFUSED)
def test_refused_combinations_say_why(
    name: str, objective_name: str, policies: dict[str, Policy]
) -> None:
    """An objective that exponentiates a ratio refuses a bound, one for a denoiser's errors refuses
    what is none, and both name the way out.
    """
    policy = policy_of(name, policies)
    with pytest.raises(ValueError, match=r"likelihood: (path|elbo)"):
        invariants.parts_fit(
            OBJECTIVES[objective_name],
            likelihood=policy.likelihood,
            reference=None,
            critic=policy.critic,
        )


def test_the_table_covers_both_kinds_of_likelihood() -> None:
    """The table would notice if every combination were refused, or none."""
    assert len(COMBINATIONS) > 40
    needs = [objective.needs for objective in OBJECTIVES.values()]
    bounds = sum(not case.exact and case.only is None for case in ADAPTERS.values())
    others = sum(case.exact and case.only is None for case in ADAPTERS.values())
    assert bounds == 2
    assert len(REFUSED) == sum(
        bounds * ("exact" in needed) + others * ("bound" in needed) for needed in needs
    )


def test_a_missing_reference_is_named() -> None:
    """DPO without a reference is refused when the run is built."""
    case: Case = ADAPTERS["text"]
    policy = case.spec.load()
    with pytest.raises(ValueError, match="needs a reference"):
        invariants.parts_fit(OBJECTIVES["dpo"], likelihood="exact", reference=None, critic=None)
    with pytest.raises(ValueError, match="needs a critic"):
        invariants.parts_fit(
            OBJECTIVES["ppo"],
            likelihood=policy.likelihood,
            reference=LoRAOff().build(policy),
            critic=None,
        )
