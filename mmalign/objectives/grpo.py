"""Group-relative policy optimisation and its relatives, which are settings of one class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import functional, pairing
from mmalign.distributed import all_gather
from mmalign.functional.advantage import Scale
from mmalign.objectives import policy_gradient
from mmalign.objectives.policy_gradient import Aggregate, KLTerm
from mmalign.types import Additive, Batch, Loss, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """Clipped policy gradient with advantages relative to the group.

    The defaults are GRPO as first published, without its KL term. Relatives:

    * DAPO: ``epsilon_high=0.28, aggregate="token", drop_tied_groups=True``
    * Dr. GRPO: ``scale="none", aggregate="constant", max_length=...``
    * DDPO (denoising moves): ``epsilon=1e-4, advantage_clip=10``
    * Flow-GRPO: ``epsilon=1e-4, scale="batch", population=True, advantage_clip=5, beta=0.04,
      kl="exact"``
    * DanceGRPO: ``epsilon=1e-4, advantage_clip=5``

    Attributes:
        epsilon: How far the ratio may fall below 1.
        epsilon_high: How far it may rise above 1; None for ``epsilon``.
        beta: Weight of the KL to the reference; 0 needs no reference.
        kl: Estimate of the KL from the sampled step (`functional.kl` says what gradient each has),
            "exact": the closed form the policy gives for its steps, or "prediction": the mean
            squared difference of a denoiser's (guided) predictions to the reference's.
        scale: What advantages are divided by: deviation of the group, of the whole batch over all
            processes, or nothing.
        population: Deviation over n instead of n - 1.
        advantage_clip: Advantages are held within plus and minus this; None for no bound.
        aggregate: Weight of a step of a row with n scored steps, and the denominator: "sequence"
            (1 / n, rows), "token" (1, scored steps) or "constant" (1 / max_length, rows).
        max_length: For "constant": a fixed number, commonly the longest output allowed.
        drop_tied_groups: Leave out groups whose rewards are all equal, of the denominator too.
        allow_bound: Accept log-probs that are bounds, whose ratio is no likelihood ratio.

    References:
        2402.03300; DAPO 2503.14476; Dr. GRPO 2503.20783; DDPO 2305.13301; Flow-GRPO 2505.05470;
        DanceGRPO 2505.07818.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    kl: KLTerm = "k3"
    scale: Scale = "group"
    population: bool = False
    advantage_clip: float | None = None
    aggregate: Aggregate = "sequence"
    max_length: int | None = None
    drop_tied_groups: bool = False
    allow_bound: bool = False

    def __post_init__(self) -> None:
        policy_gradient.check_aggregate(self.aggregate, self.max_length)
        if self.epsilon <= 0 or self.beta < 0:
            raise ValueError(
                f"epsilon={self.epsilon} must be positive, beta={self.beta} not negative"
            )
        if self.advantage_clip is not None and self.advantage_clip <= 0:
            raise ValueError(f"advantage_clip={self.advantage_clip} must be positive, or unset")

    @property
    def additive_over(self) -> Additive:
        """Weights and advantages are settled in `credit`, so every step stands alone."""
        return "step"

    @property
    def needs(self) -> frozenset[str]:
        """What sampled the batch, unless it is used once, and with beta the reference."""
        found = {"behaviour"} if self.allow_bound else {"behaviour", "exact"}
        if self.beta > 0:
            found.add(policy_gradient.kl_need(self.kl))
        return frozenset(found)

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Advantages, step weights and this process's denominator.

        Rows that nobody judged (reward NaN) get weight 0 and are counted. Where nothing is left,
        the denominator is 0; the caller skips the update if the sum over the processes is 0.
        """
        if batch.step_reward is not None:
            raise ValueError("GRPO credits whole outputs and would ignore step rewards; use PPO")
        reward = pairing.scalar_reward(batch)
        advantage = self._advantage(reward, batch.group)
        if self.advantage_clip is not None:
            advantage = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        tied, judged = functional.tied_rows(reward, batch.group), ~reward.isnan()
        dropped = {pairing.UNJUDGED: int((~judged).sum())}
        batch = replace(
            batch,
            advantage=advantage.unsqueeze(1) * torch.ones_like(batch.weight),
            metrics={**batch.metrics, **group_metrics(reward, batch.group)},
        )
        kept = judged
        if self.drop_tied_groups:
            dropped["dropped/tied_groups"] = len(torch.unique(batch.group[tied]))
            kept = kept & ~tied
        batch = pairing.counted(policy_gradient.keep_rows(batch, kept), dropped)
        return policy_gradient.weigh(batch, aggregate=self.aggregate, max_length=self.max_length)

    def _advantage(self, reward: Tensor, group: Tensor) -> Tensor:
        return functional.group_advantage(
            reward,
            group,
            scale=self.scale,
            population=self.population,
            batch_reward=all_gather(reward) if self.scale == "batch" else None,
        )

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Weighted sum over the piece's steps of the clipped surrogate plus ``beta`` times the KL.

        Without ``batch.behaviour`` the batch is on-policy: the ratio is 1 and the gradient that of
        ``-A log_probs``.
        """
        assert batch.advantage is not None
        behaviour = scores.log_probs.detach() if batch.behaviour is None else batch.behaviour
        each = functional.clipped_surrogate(
            scores.log_probs,
            behaviour,
            batch.advantage,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
        )
        metrics = policy_gradient.step_metrics(
            scores, behaviour, batch, epsilon=self.epsilon, epsilon_high=self.epsilon_high
        )
        if self.beta > 0:
            divergence = policy_gradient.kl_term(scores, batch, kind=self.kl)
            each = each + self.beta * divergence
            metrics["kl"] = policy_gradient.mean_of_steps(divergence, batch)
        return policy_gradient.summed(each, batch, metrics)


def group_metrics(reward: Tensor, group: Tensor) -> dict[str, tuple[float, float]]:
    """``reward`` over judged rows; ``reward_std`` and the share of tied groups over groups."""
    judged = ~reward.isnan()
    kept, member = reward[judged], group[judged]
    tied = functional.tied_rows(kept, member)
    numbers = torch.unique(member)
    spreads = [kept[member == n].std(correction=int((member == n).sum() > 1)) for n in numbers]
    count = float(len(numbers))
    return {
        "reward": (float(kept.sum()), float(len(kept))),
        "reward_std": (float(sum(spreads)), count),
        "frac_reward_zero_std": (float(len(torch.unique(member[tied]))), count),
    }
