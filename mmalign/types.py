"""The values that flow through mmalign.

Notation, used everywhere in the project:

    P  prompts of a batch            B  rows (one row = one trajectory of one prompt)
    G  rows that share a prompt      T  steps of a row (tokens, codebook indices, denoising moves)
    N  pairs of rows                 K  objectives of a vector-valued reward
    V  vocabulary                    C, H, W  latent channels, height, width

A *step* is one decision of the policy: a response token, an image code, a denoising move, or one
(timestep, noise) draw of a bound. Log-probabilities are float32 nats; for Gaussian steps they are
nats per latent element (the mean over the latent), which every published clip range assumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.pieces import Bounds, cut, extents
from mmalign.prompts import Labelled, Message, Output, Preference, Prompt, Ranking
from mmalign.ragged import pad_steps
from mmalign.trajectory import Trajectory

__all__ = [
    "Additive", "Batch", "Labelled", "Loss", "Message", "Metric", "Output", "Preference", "Prompt",
    "Ranking", "Scores", "Trajectory",
]  # fmt: skip

Additive: TypeAlias = Literal["group", "group_step", "step"]
"""What a loss is a sum over: whole groups, the steps of whole groups, or the steps of rows."""
Metric: TypeAlias = tuple[Tensor, Tensor]
"""A metric of a piece: (sum, count). Both are added over pieces and ranks, then divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A group of trajectories with rewards, and what credit assignment adds to it.

    An offline pair is a group of two with rewards (1, 0); GRPO's eight samples of a prompt are a
    group of eight.

    Attributes:
        trajectory: B rows.
        group: ``[B]`` int64; rows with one number are compared with each other. Formed from the
            prompt's position, never from its text.
        reward: ``[B]``, or ``[B, K]`` for several objectives; higher is better.
        weight: ``[B, T]`` float32, weight of each step in the loss; 0 where masked.
        step_reward: ``[B, T]`` reward of each step (process rewards), or None.
        label: ``[B]`` bool of unpaired data, or None.
        reference: ``[B, T]`` log-probs under the reference, or None.
        behaviour: ``[B, T]`` log-probs under the policy that sampled, or None where the batch is
            used for one update by the policy that sampled it (the ratio is then 1 by definition).
        values: ``[B, T]`` the critic's values before the update, or None.
        returns: ``[B, T]`` regression target of the critic, or None.
        advantage: ``[B, T]``, or None.
        pairs: ``[N, 2]`` int64 row numbers (chosen, rejected), or None.
        coefficient: ``[N]`` weight of each pair, or None for ones.
        pair_weight: ``[N, 2, T]`` float32, weight of each step of a pair's (chosen, rejected) side;
            where present it stands in for ``weight`` in that pair's sums. 0 where masked.
        annotator: ``[B]`` int64, a number for whoever judged the row, or None.
        prompt_id: ``[B]`` int64, the place of the row's prompt in the data set of its source, the
            same in every batch, or None. Batches that are joined lose it.
        step_of: ``[B, T]`` int64, which step of its branch (a tree's) a token belongs to, or None
            where outputs are not cut into steps.
        from_reference: ``[B]`` bool, rows that were sampled from the reference and not from the
            policy; None where there are none.
        anchor: ``[B]`` what each row is compared with, a statistic of the global batch that credit
            took and that has no gradient (KTO's KL point), or None.
        pair_anchor: ``[N, 2]`` the same for a pair's (chosen, rejected) side, or other constants of
            a pair that credit settled, or None.
        denominator: What the summed loss is divided by, before summing over ranks: known before
            the first forward, so that any division into microbatches gives the same gradient.
        counters: Things dropped or noticed on the way here, by name; added over ranks.
        metrics: (sum, count) of quantities measured on the way here, by name.
        row: ``[B]`` int64, the rows' numbers in the batch that was credited, where there are parts.
        parts: The batch as each term of a sum of objectives has credited it: rows of this one
            under the same numbers, without the inputs that scoring needs.
    """

    trajectory: Trajectory
    group: Tensor
    reward: Tensor
    weight: Tensor
    step_reward: Tensor | None = None
    label: Tensor | None = None
    reference: Tensor | None = None
    behaviour: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None
    advantage: Tensor | None = None
    pairs: Tensor | None = None
    coefficient: Tensor | None = None
    pair_weight: Tensor | None = None
    annotator: Tensor | None = None
    prompt_id: Tensor | None = None
    step_of: Tensor | None = None
    from_reference: Tensor | None = None
    anchor: Tensor | None = None
    pair_anchor: Tensor | None = None
    denominator: float = 0.0
    counters: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    row: Tensor | None = None
    parts: tuple[Batch, ...] = ()

    def __len__(self) -> int:
        return len(self.trajectory)

    def pair_weights(self) -> Tensor:
        """``[N, 2, T]`` weights of the pairs' steps: ``pair_weight``, or those of their rows."""
        if self.pair_weight is not None:
            return self.pair_weight
        assert self.pairs is not None
        return self.weight[self.pairs]

    def rows(self, index: Tensor) -> Batch:
        """The rows at ``index`` (``[M]`` int64), with the pairs whose both sides are among them."""
        changes: dict[str, Any] = {"trajectory": self.trajectory.rows(index)}
        for name in (*_PER_ROW, *_LOST_IN_COMPANY):
            value = getattr(self, name)
            changes[name] = None if value is None else value[index]
        if self.pairs is not None:
            position = torch.full((len(self),), -1, dtype=torch.int64, device=self.pairs.device)
            position[index] = torch.arange(len(index), device=self.pairs.device)
            pairs = position[self.pairs]
            kept = (pairs >= 0).all(1)
            changes["pairs"] = pairs[kept]
            for name in _PER_PAIR:
                value = getattr(self, name)
                changes[name] = None if value is None else value[kept]
        found = replace(self, **changes)
        if not self.parts:
            return found
        parts = (part.rows(part.positions(found)) for part in self.parts)
        return replace(found, parts=tuple(parts))

    def positions(self, other: Batch) -> Tensor:
        """``[M]`` int64: which rows of this batch are among those of ``other``, in its order."""
        assert self.row is not None and other.row is not None
        return (other.row.unsqueeze(1) == self.row).nonzero()[:, 1]

    def steps(self, window: slice) -> Batch:
        """The steps of ``window`` alone (see `Trajectory.steps`)."""
        changes: dict[str, Any] = {"trajectory": self.trajectory.steps(window)}
        for name in _PER_STEP:
            value = getattr(self, name)
            changes[name] = None if value is None else value[:, window]
        if self.pair_weight is not None:
            changes["pair_weight"] = self.pair_weight[..., window]
        changes["parts"] = tuple(part.steps(window) for part in self.parts)
        return replace(self, **changes)

    def cut(
        self, *, within: Bounds, additive_over: Additive, prompt_lengths: Tensor | None = None
    ) -> list[Tensor]:
        """The row numbers of each piece that is computed at a time; arguments as `microbatches`."""
        rows = self.trajectory
        return cut(
            rows.prompt_of if additive_over == "step" else self.group,
            rows.prompt_of,
            steps=extents(rows.mask),
            prompts=prompt_lengths,
            whole=additive_over != "step",
            within=within,
        )

    def microbatches(
        self,
        *,
        rows: int | None,
        steps: int | None,
        additive_over: Additive,
        tokens: int | None = None,
        prompt_lengths: Tensor | None = None,
    ) -> Iterator[Batch]:
        """Pieces whose losses add up to the batch's loss.

        Args:
            rows: At most this many rows a piece; None for all.
            steps: At most this many steps a piece; None for all.
            additive_over: What the objective's loss is a sum over. ``"group"`` keeps groups whole,
                even above the bounds, and never cuts the step axis; ``"group_step"`` keeps groups
                whole and cuts it; ``"step"`` keeps the rows of a prompt together as far as the
                bounds allow.
            tokens: At most this many positions a piece, each prompt counted once; None for all.
            prompt_lengths: ``[P]`` positions of each prompt; None where prompts cost none.

        Raises:
            ValueError: ``steps`` is set and the objective, or the trajectory, needs whole rows.
        """
        if steps is not None and additive_over == "group":
            raise ValueError(
                "this objective compares whole trajectories, so `steps_per_microbatch` must be "
                "unset"
            )
        within = Bounds(rows=rows, tokens=tokens)
        cuts = self.cut(within=within, additive_over=additive_over, prompt_lengths=prompt_lengths)
        total = int(self.trajectory.mask.shape[1])
        for index in cuts:
            piece = self if len(cuts) == 1 else self.rows(index)
            if steps is None or steps >= total:
                yield piece
            else:
                yield from (piece.steps(slice(s, s + steps)) for s in range(0, total, steps))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        changes = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        parts = tuple(part.to(device) for part in self.parts)
        return replace(self, trajectory=self.trajectory.to(device), parts=parts, **changes)

    @staticmethod
    def concatenate(parts: Sequence[Batch]) -> Batch:
        """One batch of all rows; groups stay apart. Every part must carry the same fields."""
        length = max(p.trajectory.mask.shape[1] for p in parts)
        row_offset, group_offset = 0, 0
        groups, pairs = [], []
        for p in parts:
            groups.append(p.group + group_offset)
            if p.pairs is not None:
                pairs.append(p.pairs + row_offset)
            row_offset += len(p)
            group_offset += int(p.group.max()) + 1
        changes: dict[str, Any] = {}
        for name in _PER_ROW[1:]:
            values = [getattr(p, name) for p in parts]
            assert len({v is None for v in values}) == 1, f"{name} in some parts only"
            if values[0] is not None:
                padded = [pad_steps(v, length) if name in _PER_STEP else v for v in values]
                changes[name] = torch.cat(padded)
        assert len(pairs) in (0, len(parts)), "pairs in some parts only"
        assert all(p.pair_anchor is None for p in parts), "anchors are of one global batch"
        assert not any(p.parts for p in parts), "parts are of one credited batch"
        if pairs and any(p.coefficient is not None for p in parts):
            changes["coefficient"] = torch.cat(
                [
                    torch.ones(len(pair)) if p.coefficient is None else p.coefficient
                    for p, pair in zip(parts, pairs, strict=True)
                ]
            )
        if pairs and any(p.pair_weight is not None for p in parts):
            # Without weights of its own a pair is weighed as its rows are.
            changes["pair_weight"] = torch.cat(
                [functional.pad(p.pair_weights(), (0, length - p.weight.shape[1])) for p in parts]
            )
        counters: dict[str, float] = {}
        metrics: dict[str, tuple[float, float]] = {}
        for p in parts:
            for key, value in p.counters.items():
                counters[key] = counters.get(key, 0.0) + value
            for key, (total, count) in p.metrics.items():
                before = metrics.get(key, (0.0, 0.0))
                metrics[key] = (before[0] + total, before[1] + count)
        return Batch(
            trajectory=Trajectory.concatenate([p.trajectory for p in parts]),
            group=torch.cat(groups),
            pairs=torch.cat(pairs) if pairs else None,
            counters=counters,
            metrics=metrics,
            **changes,
        )


_PER_STEP = (
    "weight", "step_reward", "reference", "behaviour", "values", "returns", "advantage", "step_of",
)  # fmt: skip
_PER_ROW = ("group", "reward", "label", "annotator", "from_reference", "anchor", "row", *_PER_STEP)
_LOST_IN_COMPANY = ("prompt_id",)
"""Per row too; numbers of one source, which mean nothing beside those of another."""
_PER_PAIR = ("coefficient", "pair_weight", "pair_anchor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an adapter says about a trajectory. Every tensor is float32 with shape ``[B, T]``.

    Attributes:
        log_probs: Nats; 0 where masked. A bound where the adapter's likelihood is a bound.
        entropy: Entropy of the step's distribution, nats, on request.
        kl: Exact KL of the step's distribution to the reference's, nats, on request.
        prediction_distance: Of a denoiser: mean squared difference of its prediction to the
            reference's, on request.
        kl_forward: Exact KL of the reference's distribution to the step's, nats, on request.
        reference: Log-probs under the reference, nats, without gradient: they come with
            ``kl_forward``, whose pass knows them, so that the reference runs once.
        log_collision: Log of the probability that two draws of the step agree (``sum p^2``, of a
            density its integral), nats, on request, without gradient.
        top_k_mass: Probability of the k likeliest symbols, on request.
        top_k_entropy: Entropy of those symbols, renormalised, on request.
        features: ``[B, T, F]`` what is known before the step is taken; the critic's input.
        values: The critic's values, in units of reward, where the policy has a critic.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    kl: Tensor | None = None
    prediction_distance: Tensor | None = None
    kl_forward: Tensor | None = None
    reference: Tensor | None = None
    log_collision: Tensor | None = None
    top_k_mass: Tensor | None = None
    top_k_entropy: Tensor | None = None
    features: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The loss of a piece of a batch.

    Attributes:
        total: Scalar **sum** over the piece; the trainer divides by the batch's denominator.
        metrics: Detached (sum, count) by name; added over pieces and ranks, then divided.
    """

    total: Tensor
    metrics: Mapping[str, Metric]
