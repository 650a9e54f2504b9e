"""DDPO with its tracker: advantages by the running statistics of each prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import distributed, pairing
from mmalign.objectives import policy_gradient
from mmalign.objectives.grpo import GRPO, group_metrics
from mmalign.types import Additive, Batch, Loss, Scores

EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPO:
    """Clipped policy gradient whose advantages are by the rewards a prompt has had so far.

    ``A = (r - mean) / (std + 1e-6)`` with mean and population deviation of the last
    ``buffer_size`` rewards of the row's prompt, those of this batch among them; while a prompt has
    had fewer than ``min_count``, those of the global batch. So one sample a prompt is enough. The
    buffers are the run's memory and are saved with it. Prompts are told apart by their place in the
    data set, never by their text. Loss and weights are those of `GRPO`, which with
    ``epsilon=1e-4, advantage_clip=10`` is DDPO by groups, without a memory.

    Attributes:
        epsilon: How far the ratio of a step may leave 1.
        advantage_clip: Advantages are held within plus and minus this.
        buffer_size: Rewards of a prompt that are remembered.
        min_count: As many make its statistics; below, the batch's are used.

    References:
        2305.13301; defaults are those of ddpo-pytorch.
    """

    epsilon: float = 1e-4
    advantage_clip: float = 10.0
    buffer_size: int = 16
    min_count: int = 16

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.advantage_clip <= 0:
            raise ValueError(
                f"epsilon={self.epsilon} and advantage_clip={self.advantage_clip} must be positive"
            )
        if not 1 <= self.min_count <= self.buffer_size:
            raise ValueError(
                f"min_count={self.min_count} must lie between 1 and buffer_size={self.buffer_size},"
                " or no prompt ever has statistics of its own"
            )

    @property
    def additive_over(self) -> Additive:
        """Weights and advantages are settled before the loss, so every step stands alone."""
        return "step"

    @property
    def needs(self) -> frozenset[str]:
        """What sampled the batch, unless it is used once."""
        return frozenset({"behaviour", "exact"})

    @torch.no_grad()
    def credit(self, batch: Batch) -> Batch:
        """Advantages by the statistics of the global batch, weights and denominator.

        Rows that nobody judged (reward NaN) get weight 0 and are counted.
        """
        reward = pairing.scalar_reward(batch)
        if bool(reward.isinf().any()):
            raise ValueError("a reward is infinite; an advantage needs finite rewards")
        judged = ~reward.isnan()
        everywhere = distributed.all_gather(reward[judged].double())
        dropped = {pairing.UNJUDGED: float((~judged).sum())}
        batch = replace(
            batch,
            advantage=self._over_steps(self._standardised(reward, everywhere), batch),
            metrics={**batch.metrics, **group_metrics(reward, batch.group)},
        )
        batch = pairing.counted(policy_gradient.keep_rows(batch, judged), dropped)
        return policy_gradient.weigh(batch, aggregate="sequence", max_length=None)

    @torch.no_grad()
    def remember(
        self, batch: Batch, memory: Mapping[str, float]
    ) -> tuple[Batch, Mapping[str, float]]:
        """The batch with the advantages of prompts that are known, and the longer buffers.

        Raises:
            ValueError: The batch does not say which prompt a row is of.
        """
        if batch.prompt_id is None:
            raise ValueError(
                "ddpo remembers rewards prompt by prompt, and this source does not number its "
                "prompts; use a source of `type: rollouts`, or the objective grpo"
            )
        assert batch.advantage is not None
        judged = policy_gradient.scored(batch).any(1)
        reward = batch.reward
        rewards, _ = distributed.gathered(reward[judged].double())
        numbers, _ = distributed.gathered(batch.prompt_id[judged])
        after, advantage = dict(memory), batch.advantage.clone()
        known = 0.0
        for number in numbers.unique().tolist():
            new = rewards[numbers == number]
            history = torch.cat([_recalled(memory, number, self.buffer_size).to(new), new])
            history = history[-self.buffer_size :]
            after.update({f"{number}/{i}": float(r) for i, r in enumerate(history)})
            if len(history) >= self.min_count:
                mine = judged & (batch.prompt_id == number)
                own = self._standardised(reward[mine], history)
                advantage[mine] = self._over_steps(own, batch)
                known += float(mine.sum())
        metrics = {**batch.metrics, "tracked": (known, float(judged.sum()))}
        return replace(batch, advantage=advantage, metrics=metrics), after

    def loss(self, scores: Scores, batch: Batch) -> Loss:
        """Weighted sum over the piece's steps of the clipped surrogate."""
        return GRPO(epsilon=self.epsilon).loss(scores, batch)

    def _standardised(self, reward: Tensor, among: Tensor) -> Tensor:
        """``[M]`` advantages of rewards among others; exactly 0 where all of those are equal."""
        if len(among) == 0 or bool((among == among[0]).all()):
            return torch.zeros_like(reward)
        spread = among.std(correction=0) + EPS
        found = ((reward.double() - among.mean()) / spread).nan_to_num(0.0)
        return found.clamp(-self.advantage_clip, self.advantage_clip).to(reward)

    @staticmethod
    def _over_steps(advantage: Tensor, batch: Batch) -> Tensor:
        return advantage.unsqueeze(1).expand(-1, batch.weight.shape[1]).clone()


def _recalled(memory: Mapping[str, float], number: int, size: int) -> Tensor:
    """The remembered rewards of a prompt, oldest first."""
    keys = (f"{number}/{i}" for i in range(size))
    return torch.tensor([memory[key] for key in keys if key in memory], dtype=torch.float64)
