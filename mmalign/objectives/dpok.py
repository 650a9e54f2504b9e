"""DPOK: policy gradient with a critic, held to the reference's predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmalign import functional
from mmalign.objectives import policy_gradient
from mmalign.objectives.policy_gradient import KLTerm
from mmalign.objectives.ppo import PPO
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class DPOK:
    """``-w_r (r - V(x_t)) clip(rho, 1 +- epsilon) + w_kl KL``, a mean over all scored steps.

    The advantage of a step is the row's reward less the critic's value of the state before it, and
    the critic learns to say the reward. The ratio is clamped without PPO's maximum, so a step
    outside the band has no gradient of the reward, whatever the sign of its advantage. Credit is
    that of ``PPO(lam=1, gamma=1, kl_coefficient=0, whiten_advantages=False)``.

    Attributes:
        epsilon: How far the ratio of a step may leave 1.
        reward_weight: w_r, of the policy gradient.
        kl_weight: w_kl; 0 needs no reference.
        kl: "prediction", the mean squared difference of the network's predictions, guided as they
            were in sampling, to the reference's; "exact", the KL of a step's distribution; or an
            estimate from the sampled step (`functional.kl`).
        value_coefficient: Of the critic's loss, half its squared error.

    References:
        2305.16381; defaults are those of the released code.
    """

    epsilon: float = 1e-4
    reward_weight: float = 100.0
    kl_weight: float = 0.01
    kl: KLTerm = "prediction"
    value_coefficient: float = 1.0

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.reward_weight <= 0:
            raise ValueError(
                f"epsilon={self.epsilon} and reward_weight={self.reward_weight} must be positive"
            )
        for name in ("kl_weight", "value_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")

    @property
    def additive_over(self) -> Additive:
        """Advantages and returns are settled in `credit`, so every step stands alone."""
        return "step"

    @property
    def needs(self) -> frozenset[str]:
        """The critic's values, what sampled the batch, and with kl_weight the reference."""
        found = {"behaviour", "values", "exact"}
        if self.kl_weight > 0:
            found.add(policy_gradient.kl_need(self.kl))
        return frozenset(found)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Advantages, returns, and the number of scored steps as denominator."""
        plain = PPO(lam=1.0, gamma=1.0, kl_coefficient=0.0, whiten_advantages=False)
        return plain.credit(batch)

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Sum over the piece's steps; minus w_r times the advantages where nothing has moved."""
        assert batch.advantage is not None and batch.returns is not None
        assert batch.values is not None and scores.values is not None
        behaviour = scores.log_probs.detach() if batch.behaviour is None else batch.behaviour
        policy = functional.clamped_surrogate(
            scores.log_probs, behaviour, batch.advantage, epsilon=self.epsilon
        )
        critic = functional.value_loss(scores.values, batch.values, batch.returns, clip=None)
        each = self.reward_weight * policy + self.value_coefficient * critic
        metrics = policy_gradient.step_metrics(
            scores, behaviour, batch, epsilon=self.epsilon, epsilon_high=None
        )
        if self.kl_weight > 0:
            divergence = policy_gradient.kl_term(scores, batch, kind=self.kl)
            each = each + self.kl_weight * divergence
            metrics["kl"] = policy_gradient.mean_of_steps(divergence, batch)
        metrics["loss/policy"] = policy_gradient.mean_of_steps(policy, batch)
        metrics["loss/value"] = policy_gradient.mean_of_steps(critic, batch)
        metrics["values"] = policy_gradient.mean_of_steps(scores.values, batch)
        return policy_gradient.summed(each, batch, metrics)
