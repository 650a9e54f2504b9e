"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import functional, pairing
from mmalign.distributed import all_gather
from mmalign.functional.surrogate import KLKind
from mmalign.objectives import policy_gradient
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class PPO:
    """PPO: a penalty for leaving the reference in the reward, advantages by GAE, a clipped update.

    The reward of a step is ``-kl_coefficient KL_t``, plus ``step_reward`` where there is one; the
    row's reward is added at its last scored step. Steps weigh alike (token mean).

    Attributes:
        epsilon: How far the ratio may fall below 1.
        epsilon_high: How far it may rise above 1; None for ``epsilon``.
        dual_clip: Bound of the loss where the advantage is negative, above 1; None for no bound.
        kl_coefficient: Units of reward per nat; 0 needs no reference.
        kl: Estimate inside the reward; k1 is the one whose gradient is that of the KL.
        gamma: Discount of a step.
        lam: Of the generalised advantage: 1 trusts the rewards, 0 the critic.
        whiten_advantages: Whether advantages get mean 0 and variance 1 over the whole batch.
        whiten_rewards: Whether step rewards get variance 1 over the whole batch, mean kept.
        value_clip: How far a value may move in one update, units of reward; None for no bound.
        value_coefficient: Weight of the critic's loss.
        entropy_coefficient: Weight of the entropy, which is rewarded; 0 asks for none.
        allow_bound: Accept log-probs that are bounds, whose ratio is no likelihood ratio.

    References:
        1707.06347; for language 2203.02155, defaults as in common code.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    dual_clip: float | None = None
    kl_coefficient: float = 0.05
    kl: KLKind = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    value_clip: float | None = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    allow_bound: bool = False

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive")
        for name in ("kl_coefficient", "value_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip={self.dual_clip} must be above 1, or unset")

    @property
    def additive_over(self) -> Additive:
        """Advantages and returns are settled in `credit`, so every step stands alone."""
        return "step"

    @property
    def needs(self) -> frozenset[str]:
        """The critic's values and the sampling policy's log-probs; the reference for the KL."""
        found = {"behaviour", "values"}
        if not self.allow_bound:
            found.add("exact")
        if self.kl_coefficient > 0:
            found.add("reference")
        if self.entropy_coefficient != 0:
            found.add("entropy")
        return frozenset(found)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Advantages, returns, and the number of this process's scored steps as denominator.

        Rows that nobody judged (reward NaN) are left out and counted. Statistics are taken over
        all processes.
        """
        judged = ~pairing.scalar_reward(batch).isnan()
        if bool(batch.reward.isinf().any()):
            raise ValueError("a reward is infinite; PPO needs finite rewards")
        dropped = {pairing.UNJUDGED: int((~judged).sum())}
        batch = pairing.counted(policy_gradient.keep_rows(batch, judged), dropped)
        assert batch.values is not None
        mask = batch.trajectory.mask & ~batch.reward.isnan().unsqueeze(1)
        reward, divergence = self._step_rewards(batch, mask)
        advantage, returns = functional.gae(
            reward, batch.values, mask, gamma=self.gamma, lam=self.lam
        )
        if self.whiten_advantages:
            everywhere = all_gather(advantage[mask])
            advantage = functional.whiten(advantage, mask, batch_values=everywhere)
        steps = float(mask.sum())
        metrics = {
            "reward": (float(batch.reward[mask.any(1)].sum()), float(mask.any(1).sum())),
            "return": (float(returns.sum()), steps),
            "kl": (float(divergence.sum()), steps),
        }
        credited = replace(
            batch, advantage=advantage, returns=returns, metrics={**batch.metrics, **metrics}
        )
        return policy_gradient.weigh(credited, aggregate="token", max_length=None)

    def _step_rewards(self, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and KL estimate of each step: ``[B, T]`` each, 0 where masked."""
        divergence = torch.zeros_like(batch.weight)
        if self.kl_coefficient > 0:
            if batch.behaviour is None or batch.reference is None:
                raise ValueError("PPO's KL penalty needs behaviour and reference log-probs")
            estimate = functional.kl(batch.behaviour, batch.reference, kind=self.kl)
            divergence = torch.where(mask, estimate, divergence)
        reward = -self.kl_coefficient * divergence
        if batch.step_reward is not None:
            reward = reward + torch.where(mask, batch.step_reward, 0.0)
        reward = reward + torch.where(last_step(mask), batch.reward.unsqueeze(1), 0.0)
        if self.whiten_rewards:
            everywhere = all_gather(reward[mask])
            reward = functional.whiten(reward, mask, shift_mean=False, batch_values=everywhere)
        return reward, divergence

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Sum over the piece's steps: clipped surrogate + value loss - entropy, weighted."""
        assert batch.advantage is not None and batch.returns is not None
        assert batch.values is not None and scores.values is not None
        behaviour = scores.log_probs.detach() if batch.behaviour is None else batch.behaviour
        policy = functional.clipped_surrogate(
            scores.log_probs,
            behaviour,
            batch.advantage,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
            dual_clip=self.dual_clip,
        )
        critic = functional.value_loss(
            scores.values, batch.values, batch.returns, clip=self.value_clip
        )
        each = policy + self.value_coefficient * critic
        if self.entropy_coefficient != 0:
            assert scores.entropy is not None, "the entropy was not asked of the policy"
            each = each - self.entropy_coefficient * scores.entropy
        metrics = policy_gradient.step_metrics(
            scores, behaviour, batch, epsilon=self.epsilon, epsilon_high=self.epsilon_high
        )
        metrics["loss/policy"] = policy_gradient.mean_of_steps(policy, batch)
        metrics["loss/value"] = policy_gradient.mean_of_steps(critic, batch)
        metrics["values"] = policy_gradient.mean_of_steps(scores.values, batch)
        return policy_gradient.summed(each, batch, metrics)


def last_step(mask: Tensor) -> Tensor:
    """``[B, T]`` bool, True at the last True of each row of ``mask``; nowhere in an empty row."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)
