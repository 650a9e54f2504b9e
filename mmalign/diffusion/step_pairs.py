"""Pairs of single denoising steps from one and the same latent: the source of SPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmalign import distributed, pairing, rng
from mmalign.blame import naming
from mmalign.diffusion.branching import Fork, Forking
from mmalign.diffusion.path import PathAdapter
from mmalign.diffusion.sampling import conditions
from mmalign.epochs import WalkingSource, Where, require_shares, weightless
from mmalign.policy import Policy
from mmalign.protocols import RewardModel
from mmalign.rewards import judged
from mmalign.run import DataSpec
from mmalign.types import Batch, Output, Prompt, Trajectory


class StepPairSource(WalkingSource):
    """Batches whose rows are single moves, two by two from the same latent.

    Args:
        spec: Settings.
        policy: A path policy.
        seed: Of order and noise.
    """

    def __init__(self, spec: StepPairs, policy: Policy, seed: int) -> None:
        if not isinstance(policy.adapter, PathAdapter):
            raise ValueError(
                "a step_pairs source forks denoising paths; give it a diffusion or flow policy of "
                "`likelihood: path`"
            )
        self.spec, self.policy = spec, policy
        self.adapter = policy.adapter
        steps = self.adapter.settings.denoising.steps
        if self.adapter.settings.step_fraction < 1 or self.adapter.settings.denoising.window:
            raise ValueError(
                "a step_pairs source compares every step from first_step on; leave step_fraction "
                "and window of the policy unset"
            )
        if spec.first_step >= steps:
            raise ValueError(
                f"first_step={spec.first_step} leaves nothing of {steps} steps to compare"
            )
        self.data = spec.data.prompts()
        require_shares(spec.batch_size)
        super().__init__(
            spec, size=len(self.data), holds=f"prompt: {spec.data}", seed=seed, keep_last=False
        )

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The pairs of the steps of the prompts at these places."""
        chosen = [everything[place] for place in places]
        prompts = [self.data[number] for _, number in chosen]
        generators = [rng.generator(self.seed, "rollout", epoch, row) for epoch, row in chosen]
        settings = self.adapter.settings.denoising
        with naming(self.data, prompts=[number for _, number in chosen]):
            static = conditions(self.adapter.family, prompts)
        with self.policy.autocast():
            found = Forking(
                family=self.adapter.family,
                model=self.policy.model,
                prompts=static,
                settings=settings,
                candidates=self.spec.candidates,
                first_step=self.spec.first_step,
                judge=lambda outputs, time: self._judged(prompts, outputs, time),
                generators=generators,
            ).forks()
        if not found:
            raise ValueError(
                f"no step from first_step={self.spec.first_step} on has a density; begin earlier"
            )
        pairs, dropped = self._pairs(found)
        everywhere = distributed.total(len(pairs), device=self.policy.device)
        # Two rows at least, so that every process has something to score; they may weigh nothing.
        batch = _rows(found, pairs or [(0, 0, 0, 1)], static)
        if not pairs or everywhere < distributed.world_size():
            dropped["dropped/too_few_pairs"] = len(pairs)
            batch = weightless(batch)
        rewards = torch.stack([fork.reward for fork in found])
        metrics = {"rollout/reward": (float(rewards.sum()), float(rewards.numel()))}
        return pairing.counted(replace(batch, metrics=metrics), dropped)

    def _judged(self, prompts: Sequence[Prompt], outputs: Sequence[Output], time: float) -> Tensor:
        """Rewards of candidates; a reward that looks for it finds the timestep in ``meta``."""
        told = [replace(p, meta={**p.meta, "timestep": time}) for p in prompts]
        asked = [prompt for prompt in told for _ in range(self.spec.candidates)]
        found = judged(self.spec.reward, asked, outputs)
        if found.dim() != 1:
            raise ValueError(
                f"rewards of shape {tuple(found.shape)} give no order of candidates; combine the "
                "objectives into one number a row first"
            )
        return found

    def _pairs(
        self, found: Sequence[Fork]
    ) -> tuple[list[tuple[int, int, int, int]], dict[str, float]]:
        """(fork, prompt, best, worst) of what is clear enough, and how many were not."""
        kept: list[tuple[int, int, int, int]] = []
        dropped = {pairing.TIES: 0.0, pairing.MARGIN: 0.0, "dropped/too_few_pairs": 0.0}
        for number, fork in enumerate(found):
            for prompt, reward in enumerate(fork.reward):
                gap = reward.max() - reward.min()
                if float(gap) == 0:
                    dropped[pairing.TIES] += 1
                elif float(torch.tanh(gap / 2)) <= self.spec.min_difference:
                    dropped[pairing.MARGIN] += 1
                else:
                    kept.append((number, prompt, int(reward.argmax()), int(reward.argmin())))
        return kept, dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPairs:
    """Candidates of every denoising step, judged where they lead, best and worst a pair.

    At each step of a walk several candidates are drawn from the same latent, and the pictures the
    network expects from them are judged by the reward, which finds the timestep they were
    predicted at as ``meta["timestep"]`` of the prompt. The best and the worst make a pair of two
    rows of one step. The walk goes on from a candidate drawn at random. Where the pairs of all
    processes together are fewer than the processes, the batch counts nothing and its update is
    skipped.

    Attributes:
        data: Where the prompts come from.
        reward: Judges the pictures; a failure of it is an error, never a 0.
        candidates: Of each step (K).
        first_step: The first step, counted from 0, that is taken with candidates.
        min_difference: A pair is kept where ``softmax`` of its two rewards differs by more than
            this, so where ``tanh((best - worst) / 2)`` does: the reward's unit matters.
        batch_size: Prompts of a global batch; each gives as many pairs as it has clear steps.
        shuffle: Whether each epoch is shuffled anew.

    References:
        SPO 2406.04314; defaults are those of the released code for Stable Diffusion 1.5.
    """

    data: DataSpec
    reward: RewardModel
    candidates: int = 4
    first_step: int = 4
    min_difference: float = 0.3
    batch_size: int = 10
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.first_step < 0:
            raise ValueError(
                f"candidates={self.candidates} must be at least 2, and first_step="
                f"{self.first_step} not negative"
            )
        if not 0 <= self.min_difference < 1:
            raise ValueError(
                f"min_difference={self.min_difference} is a difference of two probabilities; use "
                "0 to below 1"
            )

    def build(self, policy: Policy, *, seed: int) -> StepPairSource:
        """The source at its beginning."""
        return StepPairSource(self, policy, seed)


def _rows(
    found: Sequence[Fork], pairs: Sequence[tuple[int, int, int, int]], static: Mapping[str, Tensor]
) -> Batch:
    """The two rows of each (fork, prompt, best, worst), one group a pair."""
    picked = [(n, p, side) for n, p, best, worst in pairs for side in (best, worst)]
    latent = torch.stack([found[n].latent[p] for n, p, _ in picked])
    device, count = latent.device, len(pairs)

    def numbers(name: str) -> Tensor:
        values = [getattr(found[n], name) for n, _, _ in picked]
        return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

    width = found[0].reward.shape[1]
    trajectory = Trajectory(
        mask=torch.ones(2 * count, 1, dtype=torch.bool, device=device),
        prompt_of=torch.tensor([p for _, p, _ in picked], device=device),
        static=static,
        stepwise={
            "latent": latent.unsqueeze(1),
            "next": torch.stack([found[n].after[p, k] for n, p, k in picked]).unsqueeze(1),
            "timestep": numbers("timestep"),
            "level": numbers("level"),
            "level_next": numbers("level_next"),
        },
        outputs=[found[n].outputs[p * width + k] for n, p, k in picked],
        separable=True,
        log_probs=torch.stack([found[n].log_probs[p, k] for n, p, k in picked]).unsqueeze(1),
    )
    # Prompts without a pair leave.
    trajectory = trajectory.rows(torch.arange(2 * count))
    return Batch(
        trajectory=trajectory,
        group=torch.arange(count).repeat_interleave(2),
        reward=torch.stack([found[n].reward[p, k] for n, p, k in picked]),
        weight=trajectory.mask.float(),
        pairs=torch.arange(2 * count).view(count, 2),
    ).to(device)
