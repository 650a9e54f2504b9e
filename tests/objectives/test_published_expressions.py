"""One class per family: the published expressions of diffusion and flow methods, longhand.

Each test writes the paper's loss out on its own tensors and compares value and gradient with the
objective that the text models use.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.functional import gaussian_kl, gaussian_log_probs
from mmalign.objectives import DPO, GRPO
from mmalign.types import Batch, Scores, Trajectory


def latents(rows: int, steps: int, *, rewards: Tensor, group_size: int) -> Batch:
    """A batch of separable steps whose latents are 4 x 2 x 2."""
    mask = torch.ones(rows, steps, dtype=torch.bool)
    group = torch.arange(rows) // group_size
    made = Trajectory(
        mask=mask,
        prompt_of=group,
        static={},
        stepwise={"latent": torch.randn(rows, steps, 4, 2, 2).double()},
        outputs=[None] * rows,
        separable=True,
    )
    return Batch(trajectory=made, group=group, reward=rewards, weight=mask.double())


def pairs(count: int) -> Batch:
    return latents(
        2 * count, 1, rewards=torch.tensor([1.0, 0.0]).double().repeat(count), group_size=2
    )


def bound(target: Tensor, prediction: Tensor) -> Tensor:
    """A bound's log-prob: minus one half of the mean squared error, ``[B, 1]``."""
    return -(target - prediction).square().flatten(1).mean(1).unsqueeze(1) / 2


def test_diffusion_dpo_is_dpo():
    """2311.12908, equation 14: -log sigmoid(-beta / 2 (d_policy - d_ref)), d = m_w - m_l.

    One noise for both sides of a pair; the mean is over pairs, outside the logarithm.
    """
    beta, count = 5000.0, 3
    noise = torch.randn(count, 4, 2, 2).double().repeat_interleave(2, 0)
    held = noise + 0.1 * torch.randn(2 * count, 4, 2, 2).double()
    predicted = (held + 0.002 * torch.randn_like(held)).requires_grad_()

    def gap(prediction: Tensor) -> Tensor:
        error = (noise - prediction).square().mean((1, 2, 3))
        return error[0::2] - error[1::2]

    inside = -0.5 * beta * (gap(predicted) - gap(held))
    longhand = -logsigmoid(inside).mean()
    (expected,) = torch.autograd.grad(longhand, predicted)

    objective = DPO(beta=beta)
    batch = objective.credit(replace(pairs(count), reference=bound(noise, held)))
    loss = objective.loss(Scores(log_probs=bound(noise, predicted)), batch)
    (got,) = torch.autograd.grad(loss.total / batch.denominator, predicted)
    torch.testing.assert_close(loss.total / batch.denominator, longhand)
    torch.testing.assert_close(got, expected)
    accuracy, number = loss.metrics["rewards/accuracies"]
    torch.testing.assert_close(accuracy / number, (inside > 0).double().mean())


def test_diffusion_dpo_by_hand():
    """Errors 0.100 and 0.120, reference 0.101 and 0.119, beta 5000.

    The gaps are -0.020 and -0.018, so inside = -2500 * -0.002 = 5, log(1 + exp(-5)) = 0.00671535.
    """
    batch = pairs(1)
    mine = torch.tensor([[0.100], [0.120]], dtype=torch.float64)
    held = torch.tensor([[0.101], [0.119]], dtype=torch.float64)
    batch = DPO(beta=5000.0).credit(replace(batch, reference=-held / 2))
    loss = DPO(beta=5000.0).loss(Scores(log_probs=-mine / 2), batch)
    assert loss.total.item() == pytest.approx(0.00671535, abs=1e-8)
    assert loss.metrics["rewards/margins"][0].item() == pytest.approx(5.0)


def test_a_smaller_error_on_the_chosen_side_lowers_the_loss():
    held = torch.full((2, 1), -0.05, dtype=torch.float64)
    batch = DPO(beta=5000.0).credit(replace(pairs(1), reference=held))

    def loss(chosen: float) -> float:
        log_probs = torch.tensor([[-chosen / 2], [-0.05]], dtype=torch.float64)
        return DPO(beta=5000.0).loss(Scores(log_probs=log_probs), batch).total.item()

    assert loss(0.1) == pytest.approx(math.log(2))
    assert loss(0.0999) < math.log(2) < loss(0.1001)


def test_ddpo_is_grpo():
    """2305.13301 with importance sampling: mean over steps of max(-A rho, -A clip(rho)).

    Advantages are clipped to 10, ratios to 1 +- 1e-4; log-probs are means over the latent.
    """
    rows, steps, std = 8, 5, 0.3
    rewards = torch.randn(rows).double()
    batch = latents(rows, steps, rewards=rewards, group_size=4)
    taken = batch.trajectory.stepwise["latent"]
    old_mean = taken + std * torch.randn_like(taken)
    mean = (old_mean + 2e-4 * torch.randn_like(taken)).requires_grad_()

    def density(center: Tensor) -> Tensor:
        normal = torch.distributions.Normal(center, std)
        return normal.log_prob(taken).mean((-3, -2, -1))

    by_prompt = rewards.view(2, 4)
    advantage = (by_prompt - by_prompt.mean(1, keepdim=True)) / (
        by_prompt.std(1, keepdim=True) + 1e-4
    )
    advantage = advantage.clamp(-10, 10).flatten().unsqueeze(1)
    ratio = torch.exp(density(mean) - density(old_mean))
    unclipped = -advantage * ratio
    clipped = -advantage * torch.clamp(ratio, 1.0 - 1e-4, 1.0 + 1e-4)
    longhand = torch.mean(torch.maximum(unclipped, clipped))
    (expected,) = torch.autograd.grad(longhand, mean)
    assert 0 < (ratio - 1).abs().gt(1e-4).double().mean() < 1

    objective = GRPO(epsilon=1e-4, advantage_clip=10.0)
    behaviour = gaussian_log_probs(taken, old_mean, std)
    batch = objective.credit(replace(batch, behaviour=behaviour))
    loss = objective.loss(Scores(log_probs=gaussian_log_probs(taken, mean, std)), batch)
    (got,) = torch.autograd.grad(loss.total / batch.denominator, mean)
    torch.testing.assert_close(loss.total / batch.denominator, longhand)
    torch.testing.assert_close(got, expected)


def test_flow_grpo_is_grpo():
    """2505.05470: the clipped surrogate plus beta times the closed-form KL of the moves.

    Advantages: mean per prompt, population deviation of the whole batch, clipped to 5.
    """
    rows, steps, std, beta = 6, 4, 0.27, 0.04
    rewards = torch.tensor([0.1, 0.9, 0.4, 5.0, 0.2, 0.3]).double()
    batch = latents(rows, steps, rewards=rewards, group_size=3)
    taken = batch.trajectory.stepwise["latent"]
    old_mean = taken + std * torch.randn_like(taken)
    held = old_mean + 1e-3 * torch.randn_like(taken)
    mean = (old_mean + 2e-4 * torch.randn_like(taken)).requires_grad_()

    centred = (rewards.view(2, 3) - rewards.view(2, 3).mean(1, keepdim=True)).flatten()
    advantage = (centred / (rewards.std(correction=0) + 1e-4)).clamp(-5, 5).unsqueeze(1)
    old = -((taken - old_mean) ** 2).mean((-3, -2, -1)) / (2 * std**2)
    new = -((taken - mean) ** 2).mean((-3, -2, -1)) / (2 * std**2)
    ratio = torch.exp(new - old)
    policy = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4))
    divergence = ((mean - held) ** 2).mean((-3, -2, -1)) / (2 * std**2)
    longhand = (policy + beta * divergence).mean()
    (expected,) = torch.autograd.grad(longhand, mean)

    objective = GRPO(
        epsilon=1e-4, scale="batch", population=True, advantage_clip=5.0, beta=beta, kl="exact"
    )
    behaviour = gaussian_log_probs(taken, old_mean, std)
    batch = objective.credit(replace(batch, behaviour=behaviour))
    scores = Scores(log_probs=gaussian_log_probs(taken, mean, std), kl=gaussian_kl(mean, held, std))
    loss = objective.loss(scores, batch)
    (got,) = torch.autograd.grad(loss.total / batch.denominator, mean)
    torch.testing.assert_close(loss.total / batch.denominator, longhand)
    torch.testing.assert_close(got, expected)


def test_advantages_are_clipped():
    """Three rewards of 0 and one of 30 without scaling: (-7.5, -7.5, -7.5, 22.5) within 5."""
    rewards = torch.tensor([0.0, 0.0, 0.0, 30.0]).double()
    batch = GRPO(scale="none", advantage_clip=5.0).credit(
        latents(4, 2, rewards=rewards, group_size=4)
    )
    expected = torch.tensor([-5.0, -5.0, -5.0, 5.0]).double().unsqueeze(1).expand(4, 2)
    torch.testing.assert_close(batch.advantage, expected)
