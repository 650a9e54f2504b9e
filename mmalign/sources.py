"""Where batches come from: recorded preferences, rollouts, or both.

Each source is a small settings object that builds the iterator, which is infinite and can be
restored (see `mmalign.epochs`); each process encodes or samples its share of a global batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign import rng
from mmalign.blame import naming
from mmalign.epochs import WalkingSource, Where, require_shares
from mmalign.policy import Policy
from mmalign.protocols import ReadsReference, Reference, RewardModel, Selector, Source
from mmalign.rewards import judged
from mmalign.run import DataSpec, SourceSpec
from mmalign.step_weights import recorded_weights
from mmalign.types import Batch, Output, Preference, Prompt, Trajectory


class PreferenceSource(WalkingSource):
    """Batches of recorded pairs."""

    def __init__(self, spec: Preferences, policy: Policy, seed: int) -> None:
        self.spec, self.policy = spec, policy
        self.data = spec.data.preferences()
        super().__init__(spec, size=len(self.data), holds=f"preference: {spec.data}", seed=seed)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The pairs at these places; rows of a pair adjacent, the chosen one first."""
        chosen = [everything[place] for place in places]
        asked: list[int] = []
        prompts: list[Prompt] = []
        outputs: list[list[Output]] = []
        generators: list[torch.Generator] = []
        metas: list[Mapping[str, Any]] = []
        for epoch, number in chosen:
            pair = self.data[number]
            metas.append(pair.meta)
            key = (self.seed, "encode", 0 if self.spec.fixed_noise else epoch, number)
            for prompt, sides in _sides(pair):
                asked.append(number)
                prompts.append(prompt)
                outputs.append(sides)
                # Both sides of a pair draw the same noise, also where they saw different images.
                generators.append(rng.generator(*key))
        rows = [(number, side) for _, number in chosen for side in ("chosen", "rejected")]
        with naming(self.data, prompts=asked, rows=rows):
            trajectory = self.policy.adapter.encode(prompts, outputs, generators=generators)
        count = len(chosen)
        return Batch(
            trajectory=trajectory,
            group=torch.arange(count).repeat_interleave(2),
            reward=rewards(metas, columns=self.spec.rewards),
            annotator=annotators(metas, column=self.spec.annotator),
            weight=trajectory.mask.float(),
            pairs=torch.arange(2 * count).view(count, 2),
            pair_weight=recorded_weights(
                metas, trajectory.mask, numbers=[number for _, number in chosen]
            ),
        ).to(trajectory.mask.device)


class RolloutSource(WalkingSource):
    """Batches of groups sampled from the policy as it is now, and judged.

    The last ``reference_generations`` of each group are the reference's.
    """

    def __init__(self, spec: Rollouts, policy: Policy, seed: int) -> None:
        self.spec, self.policy = spec, policy
        self.network: nn.Module | None = None
        self.data = spec.data.prompts()
        require_shares(spec.batch_size)
        super().__init__(
            spec, size=len(self.data), holds=f"prompt: {spec.data}", seed=seed, keep_last=False
        )

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The groups of the prompts at these places, or what the selector keeps of them."""
        batch = self._sampled([everything[place] for place in places])
        return batch if self.spec.selector is None else self.spec.selector(batch)

    def read(self, reference: Reference | None) -> None:
        """Sample from this reference where the settings ask for it.

        Raises:
            ValueError: They do, and there is none or it is no network.
        """
        if self.spec.reference_generations == 0:
            return
        self.network = getattr(reference, "network", None)
        if self.network is None:
            raise ValueError(
                f"reference_generations={self.spec.reference_generations} samples from the "
                "reference, so it needs an objective that has one, and a reference that is a "
                "network (frozen, lora_off or named_lora), not recorded scores"
            )

    def _sampled(self, chosen: Sequence[Where]) -> Batch:
        prompts = [self.data[number] for _, number in chosen]
        size, theirs = self.spec.num_generations, self.spec.reference_generations
        generators = [rng.generator(self.seed, "rollout", *where) for where in chosen]
        with naming(self.data, prompts=[number for _, number in chosen]):
            trajectory = self.policy.sample(
                prompts, group_size=size - theirs, generators=generators
            )
        if theirs:
            trajectory = beside(trajectory, self._of_the_reference(prompts, chosen))
        asked = [prompt for prompt in prompts for _ in range(size)]
        reward = judged(self.spec.reward, asked, _decoded(trajectory))
        place = torch.arange(size).repeat(len(prompts))
        own = (place < size - theirs).nonzero().squeeze(1).to(trajectory.mask.device)
        return Batch(
            trajectory=trajectory,
            group=torch.arange(len(prompts)).repeat_interleave(size),
            reward=reward,
            weight=trajectory.mask.float(),
            prompt_id=torch.tensor([row for _, row in chosen]).repeat_interleave(size),
            from_reference=place >= size - theirs if theirs else None,
            metrics=_rollout_metrics(trajectory.mask[own], reward[own.cpu()], size - theirs),
        ).to(trajectory.mask.device)

    def _of_the_reference(self, prompts: Sequence[Prompt], chosen: Sequence[Where]) -> Trajectory:
        assert self.network is not None, "the reference was never handed over"
        keys = [(self.seed, "reference_rollout", *where) for where in chosen]
        with torch.no_grad(), self.policy.autocast():
            return self.policy.adapter.sample(
                self.network,
                prompts,
                group_size=self.spec.reference_generations,
                generators=[rng.generator(*key) for key in keys],
            )


_ALIKE = {
    "annotator": "names its annotators (`annotator`)",
    "from_reference": "samples from the reference (`reference_generations`)",
    "step_of": "has lists that are cut into steps",
}
"""What rows must all have or all lack, and how a part came to have it."""


class MixedSource:
    """Each batch holds the rows of one batch of every part."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Batch]:
        for batches in zip(*self.parts, strict=True):
            if any(b.pairs is None for b in batches):
                raise ValueError(
                    "the parts of a mixed source must pair their rows: give each part of rollouts "
                    "or of ranked lists a selector such as `type: best_worst`"
                )
            for name, setting in _ALIKE.items():
                if len({getattr(b, name) is None for b in batches}) > 1:
                    raise ValueError(
                        f"one part of a mixed source {setting} and another does not; give them "
                        "runs of their own, or all parts the same"
                    )
            yield Batch.concatenate(batches)

    def read(self, reference: Reference | None) -> None:
        """Hand the reference to the parts that sample from it."""
        for part in self.parts:
            if isinstance(part, ReadsReference):
                part.read(reference)

    def state_dict(self) -> dict[str, Any]:
        """The positions of the parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved positions."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Recorded pairs.

    Data with a column ``chosen_weights`` or ``rejected_weights``, one number for each scored step
    of the side, weigh the pair's steps with it.

    Attributes:
        data: Where the pairs come from.
        batch_size: Pairs of a global batch.
        shuffle: Whether each epoch is shuffled anew.
        fixed_noise: Whether a pair keeps its (timestep, noise) draws in every epoch, which lets its
            reference scores be recorded; no effect on models whose likelihood is exact.
        annotator: Column of the data that says who judged a pair, for objectives that learn whom to
            trust; None where it is not known.
        rewards: Names of further rewards, for objectives of several: for each NAME the data has the
            columns ``chosen_NAME`` and ``rejected_NAME``. ``Batch.reward`` is then ``[B, 1 + K]``,
            the preference (1 and 0) first.
    """

    data: DataSpec
    batch_size: int = 32
    shuffle: bool = True
    fixed_noise: bool = False
    annotator: str | None = None
    rewards: tuple[str, ...] = ()

    def build(self, policy: Policy, *, seed: int) -> PreferenceSource:
        """The source at its beginning."""
        return PreferenceSource(self, policy, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Samples of the policy, judged by a reward.

    Attributes:
        data: Where the prompts come from.
        reward: Judges the samples; a failure of it is an error, never a 0.
        num_generations: Samples of each prompt (G).
        reference_generations: How many of them are sampled from the reference instead of the
            policy, for `xpo`: half. They count in no metric of the policy's samples.
        batch_size: Prompts of a global batch.
        selector: What is kept of the groups and how it is paired; None keeps everything.
        shuffle: Whether each epoch is shuffled anew.
    """

    data: DataSpec
    reward: RewardModel
    num_generations: int = 8
    reference_generations: int = 0
    batch_size: int = 16
    selector: Selector | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.reference_generations < self.num_generations:
            raise ValueError(
                f"reference_generations={self.reference_generations} must leave the policy at "
                f"least one of num_generations={self.num_generations} samples"
            )

    def build(self, policy: Policy, *, seed: int) -> RolloutSource:
        """The source at its beginning."""
        return RolloutSource(self, policy, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Offline and online rows in one batch: the sizes of the parts set the mixture.

    Attributes:
        parts: The sources.
    """

    parts: tuple[SourceSpec, ...]

    def build(self, policy: Policy, *, seed: int) -> MixedSource:
        """The sources at their beginnings, each with a seed of its own."""
        parts = [p.build(policy, seed=rng.seed_of(seed, i)) for i, p in enumerate(self.parts)]
        return MixedSource(parts)


def annotators(metas: Sequence[Mapping[str, Any]], *, column: str | None) -> Tensor | None:
    """``[2 N]`` int64: a number for whoever judged each pair, once for each side.

    A number is a function of the name alone, so that every process and every run has the same.

    Raises:
        ValueError: A pair does not say who judged it.
    """
    if column is None:
        return None
    for meta in metas:
        if meta.get(column) is None:
            raise ValueError(
                f"a pair has no {column!r} (`annotator` of the source), only {sorted(meta)}; fill "
                "it in, or leave `annotator` unset"
            )
    found = [zlib.crc32(str(meta[column]).encode()) for meta in metas]
    return torch.tensor(found, dtype=torch.int64).repeat_interleave(2)


def rewards(metas: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> Tensor:
    """``[2 N]`` rewards of recorded pairs, 1 and 0; with further ones ``[2 N, 1 + K]``.

    Raises:
        ValueError: A pair lacks one of them, or it is no finite number.
    """
    preferred = torch.tensor([1.0, 0.0]).repeat(len(metas))
    if not columns:
        return preferred
    found = [
        [_number(meta, f"{side}_{name}") for name in columns]
        for meta in metas
        for side in ("chosen", "rejected")
    ]
    return torch.cat([preferred.unsqueeze(1), torch.tensor(found)], 1)


def _number(meta: Mapping[str, Any], column: str) -> float:
    value = meta.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"a pair has {value!r} in the column {column!r} (`rewards` of the source); it must be "
            f"a finite number, and its further columns are {sorted(meta)}"
        )
    return float(value)


def _sides(pair: Preference) -> list[tuple[Prompt, list[Output]]]:
    if pair.rejected_prompt is None:
        return [(pair.prompt, [pair.chosen, pair.rejected])]
    return [(pair.prompt, [pair.chosen]), (pair.rejected_prompt, [pair.rejected])]


def _decoded(trajectory: Trajectory) -> list[Output]:
    outputs = [o for o in trajectory.outputs if o is not None]
    assert len(outputs) == len(trajectory), "an adapter's sample() must decode every output"
    return outputs


def _rollout_metrics(
    mask: Tensor, reward: Tensor, group_size: int
) -> dict[str, tuple[float, float]]:
    rows = float(len(mask))
    first = reward if reward.ndim == 1 else reward.sum(-1)
    spread = first.view(-1, group_size).std(-1) if group_size > 1 else torch.zeros(1)
    lengths = mask.sum(1).float()
    return {
        "rollout/reward": (float(first.sum()), rows),
        "rollout/reward_std": (float(spread.sum()), float(spread.numel())),
        "rollout/length": (float(lengths.sum()), rows),
    }


def beside(own: Trajectory, other: Trajectory) -> Trajectory:
    """Two trajectories of the same prompts as one, the rows of a prompt adjacent, ``own`` first.

    Prompts are kept once. ``log_probs`` are dropped: another distribution drew the other's rows.
    """
    joined = Trajectory.concatenate([own, other])
    prompt_of = torch.cat([own.prompt_of, other.prompt_of])
    order = torch.argsort(prompt_of, stable=True)
    shared = replace(joined, static=own.static, prompt_of=prompt_of, log_probs=None)
    return shared.rows(order)
