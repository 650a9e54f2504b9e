"""Preferences between answers, and between views: the same answer with and without its picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign import rng
from mmalign.epochs import WalkingSource, Where
from mmalign.policy import Policy
from mmalign.run import DataSpec
from mmalign.types import Batch, Preference, Trajectory
from mmalign.vision.distortion import GRID, Distortion, Patches, distorted
from mmalign.vision.features import picture_keys
from mmalign.vision.lvlm import LVLMAdapter
from mmalign.vision.opa import weights
from mmalign.vision.opa.weights import Span

CHOSEN_SPANS, REJECTED_SPANS = "weights_chosen", "weights_rejected"
TRUTH, CHOSEN, REJECTED = 2.0, 1.0, 0.0
"""Rewards, hence ranks, of the answers of a record; those under a distorted picture have 0 too."""

Weighing = Literal["none", "spans", "changed"]
Side = list[float] | None
"""Weights of the tokens of an answer; None for ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A preference, and what is made of it.

    Attributes:
        pair: The preference.
        number: Its row.
        epoch: Of the source.
        truth: A further answer that is right, or None.
    """

    pair: Preference
    number: int
    epoch: int
    truth: str | None


class ViewSource(WalkingSource):
    """Batches of records, each a group of answers under the picture and under a distorted one.

    The rows of a record, and their rewards: the chosen answer (1), the rejected one (0), the ground
    truth where there is one (2); then, with the distorted picture, the chosen answer and the ground
    truth (0).
    """

    def __init__(self, spec: Views, policy: Policy, seed: int) -> None:
        adapter = policy.adapter
        if not isinstance(adapter, LVLMAdapter):
            raise ValueError(
                f"a source of views needs a model that looks at pictures, not {type(adapter)}; "
                "use `type: preferences`"
            )
        self.spec, self.adapter = spec, adapter
        self.data = spec.data.preferences()
        super().__init__(spec, size=len(self.data), holds=f"preference: {spec.data}", seed=seed)

    def batch_of(self, everything: Sequence[Where], places: Sequence[int]) -> Batch:
        """The records at these places, each a group."""
        records = [self._record(*everything[place]) for place in places]
        trajectory = self._trajectory(records)
        groups = [torch.full((self._size(record),), i) for i, record in enumerate(records)]
        starts = torch.tensor([0, *map(len, groups[:-1])]).cumsum(0).tolist()
        pairs, coefficients, sides = [], [], []
        for record, start in zip(records, starts, strict=True):
            lengths = trajectory.mask[start : start + self._size(record)].sum(1).tolist()
            tokens = trajectory.stepwise["token"][start : start + self._size(record)]
            answers = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
            for w, r, coefficient, both in self._pairs(record, answers):
                pairs.append([start + w, start + r])
                coefficients.append(coefficient)
                sides.append(both)
        reward = [value for record in records for value in self._rewards(record)]
        batch = Batch(
            trajectory=trajectory,
            group=torch.cat(groups),
            reward=torch.tensor(reward),
            weight=trajectory.mask.float(),
            pairs=torch.tensor(pairs),
            coefficient=torch.tensor(coefficients),
        )
        if self.spec.weights != "none":
            batch = replace(batch, pair_weight=_pair_weight(batch, sides))
        return batch.to(trajectory.mask.device)

    def _record(self, epoch: int, number: int) -> Record:
        pair = self.data[number]
        where = f"row {number}"
        if pair.rejected_prompt is not None:
            raise ValueError(
                f"{where}: its two sides saw different pictures already; this source distorts "
                "pictures itself, use `type: preferences` for such data"
            )
        if self.spec.image_weight > 0 and not pair.prompt.images:
            raise ValueError(
                f"{where} has no picture that could be distorted; set `image_weight: 0`, or remove "
                "the row"
            )
        for side in (pair.chosen, pair.rejected):
            if not isinstance(side, str):
                raise ValueError(f"{where}: its answers must be text, not {type(side).__name__}")
        truth = None
        if self.spec.ground_truth is not None:
            truth = pair.meta.get(self.spec.ground_truth)
            if not isinstance(truth, str) or not truth.strip():
                raise ValueError(
                    f"{where} has no text in the column {self.spec.ground_truth!r} "
                    f"(`ground_truth`); its further columns are {sorted(pair.meta)}"
                )
        return Record(pair=pair, number=number, epoch=epoch, truth=truth)

    def _size(self, record: Record) -> int:
        return len(self._rewards(record))

    def _rewards(self, record: Record) -> list[float]:
        truth = [] if record.truth is None else [TRUTH]
        seen = [CHOSEN, REJECTED, *truth]
        return seen + [REJECTED] * (1 + len(truth)) if self.spec.image_weight > 0 else seen

    def _trajectory(self, records: Sequence[Record]) -> Trajectory:
        """The answers, encoded; every second prompt is the one before it, its picture distorted."""
        outputs: list[list[Any]] = []
        for record in records:
            right = [record.pair.chosen, *([] if record.truth is None else [record.truth])]
            seen = [right[0], record.pair.rejected, *right[1:]]
            outputs.append([*seen, *right] if self.spec.image_weight > 0 else seen)
        trajectory = self.adapter.encode(
            [record.pair.prompt for record in records],
            outputs,
            generators=[rng.generator(self.seed, "encode") for _ in records],
        )
        if self.spec.image_weight == 0:
            return trajectory
        twice = {k: [v for v in values for _ in (0, 1)] for k, values in trajectory.static.items()}
        for i, record in enumerate(records):
            changed = self._distorted(trajectory.static["per_image"][i], record)
            twice["per_image"][2 * i + 1] = changed
            if self.adapter.family is not None:
                twice["image_keys"][2 * i + 1] = picture_keys(changed, self.adapter.family)
        prompt_of = [
            # One answer more, the rejected one, stands under the intact picture.
            2 * i + (row >= (len(answers) + 1) // 2)
            for i, answers in enumerate(outputs)
            for row in range(len(answers))
        ]
        return replace(trajectory, static=twice, prompt_of=torch.tensor(prompt_of))

    def _distorted(self, per_image: Mapping[str, Tensor], record: Record) -> dict[str, Tensor]:
        epoch = 0 if self.spec.fixed_views else record.epoch
        draw = rng.generator(self.seed, "distort", epoch, record.number)
        patches = Patches.of(self.adapter.processor) if GRID in per_image else None
        return distorted(per_image, self.spec.distortion, draw, patches=patches)

    def _pairs(
        self, record: Record, answers: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, float, tuple[Side, Side]]]:
        """The rows (within the record), coefficient and token weights of each pair."""
        severity, image = self._sides(record, answers)
        truth = record.truth is not None
        if self.spec.answer_weight > 0:
            if truth:
                yield 2, 1, self.spec.answer_weight, (None, None)
            yield 0, 1, self.spec.answer_weight, severity
        if self.spec.image_weight > 0:
            yield 0, 2 + truth, self.spec.image_weight, (image, image)
            if truth:
                yield 2, 4, self.spec.image_weight, (None, None)

    def _sides(
        self, record: Record, answers: Sequence[Sequence[int]]
    ) -> tuple[tuple[Side, Side], Side]:
        """Token weights of chosen and rejected side, and of the chosen one between views."""
        if self.spec.weights == "none":
            return (None, None), None
        chosen, rejected = answers[0], answers[1]
        if self.spec.weights == "changed":
            return weights.changed(chosen, rejected, weight=self.spec.changed_weight), None
        of_chosen = self._spans(record, CHOSEN_SPANS, str(record.pair.chosen))
        of_rejected = self._spans(record, REJECTED_SPANS, str(record.pair.rejected))
        severity, image = weights.severities(of_chosen), weights.image_weights(of_chosen)
        # The end of the corrected answer weighs as what it ends; that of the sampled one does not.
        corrected = weights.ended(severity, len(chosen), end=severity[-1])
        sampled = weights.ended(weights.severities(of_rejected), len(rejected), end=weights.NEUTRAL)
        return (corrected, sampled), weights.ended(image, len(chosen), end=image[-1])

    def _spans(self, record: Record, column: str, answer: str) -> list[Span | None]:
        where = f"row {record.number}, column {column!r}"
        if column not in record.pair.meta:
            raise ValueError(
                f"{where} is missing; `weights: spans` reads data written by the builder opa-dpo"
            )
        spans = weights.spans_of(record.pair.meta[column], answer, where=where)
        return weights.token_spans(self.adapter.tokenizer, answer, spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Recorded pairs of answers, each answer that is right also against a distorted picture.

    OPA-DPO: ``ground_truth: ground_truth, weights: spans``. mDPO: ``image_weight: 1, distortion:
    {kind: crop, share: 0.2}``; its conditional term alone (CoPO): ``answer_weight: 0`` as well. Any
    pairwise objective takes the pairs; `opa_dpo` adds anchors, and so does `anchored` in `mpo`.

    Attributes:
        data: Where the pairs come from.
        batch_size: Records of a global batch.
        shuffle: Whether each epoch is shuffled anew.
        answer_weight: Weight of a pair of answers, 1 in both methods. 0 makes no such pair, so that
            answers are compared with themselves under another view alone.
        image_weight: Weight of a pair of two views (gamma 1): OPA-DPO 0.2, mDPO 1. 0 makes no
            distorted view.
        distortion: How a picture is distorted.
        fixed_views: Whether a record keeps its distorted picture in every epoch, which lets its
            reference scores be recorded; it gets a new one otherwise.
        ground_truth: A column with a further answer that is right. It is preferred to the rejected
            one, and the chosen one is not compared with it; None for none.
        weights: Weights of tokens: "none"; "spans" for the columns weights_chosen and
            weights_rejected that the builder opa-dpo writes; "changed" for ``changed_weight`` on
            the tokens that differ between chosen and rejected answer, as RLHF-V has it.
        changed_weight: For "changed". That RLHF-V used 5 is known from a comment in code derived
            from it, not from the paper.

    References:
        OPA-DPO, 2501.09695; mDPO, 2406.11839; RLHF-V, 2312.00849.
    """

    data: DataSpec
    batch_size: int = 32
    shuffle: bool = True
    answer_weight: float = 1.0
    image_weight: float = 0.2
    distortion: Distortion = field(default_factory=Distortion)
    fixed_views: bool = False
    ground_truth: str | None = None
    weights: Weighing = "none"
    changed_weight: float = 5.0

    def __post_init__(self) -> None:
        if self.image_weight < 0:
            raise ValueError(f"image_weight={self.image_weight} must not be negative")
        if self.answer_weight < 0:
            raise ValueError(f"answer_weight={self.answer_weight} must not be negative")
        if self.image_weight == self.answer_weight == 0:
            raise ValueError("image_weight and answer_weight are both 0, which leaves no pair")
        if self.changed_weight <= 0:
            raise ValueError(f"changed_weight={self.changed_weight} must be more than 0")

    def build(self, policy: Policy, *, seed: int) -> ViewSource:
        """The source at its beginning."""
        return ViewSource(self, policy, seed)


def _pair_weight(batch: Batch, sides: Sequence[tuple[Side, Side]]) -> Tensor:
    """``[N, 2, T]`` weights, ones where a side has none of its own; 0 where masked."""
    assert batch.pairs is not None
    found = batch.weight[batch.pairs]
    for n, both in enumerate(sides):
        for side, own in enumerate(both):
            if own is not None:
                found[n, side, : len(own)] = torch.tensor(own)
    return found
