"""A run: the tree of everything that defines one, in Python and in YAML alike.

Run(policy=TextPolicy(model="tinyworld/text", lora=LoRA()), objective=DPO(beta=0.1),
    source=Preferences(data=TinyWorld(task="arithmetic"), batch_size=32)).train()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from mmalign.protocols import Diversity, Objective, Reference, RewardModel, Source
from mmalign.types import Labelled, Output, Preference, Prompt, Ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmalign.policy import Policy
    from mmalign.trainer import Trainer


@runtime_checkable
class PolicySpec(Protocol):
    """Settings of a policy of one modality (`mmalign.text.TextPolicy` and its kin)."""

    def load(self) -> Policy:
        """Load the model and its adapter."""
        ...


@runtime_checkable
class DataSpec(Protocol):
    """Settings of a data set."""

    def preferences(self) -> Sequence[Preference]:
        """Its recorded pairs."""
        ...

    def prompts(self) -> Sequence[Prompt]:
        """Its prompts alone."""
        ...

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """Its prompts, each with the output that is right."""
        ...


@runtime_checkable
class LabelledData(Protocol):
    """Settings of a data set that has labelled outputs too."""

    def unpaired(self) -> Sequence[Labelled]:
        """Its outputs that are labelled one by one."""
        ...


@runtime_checkable
class RankedData(Protocol):
    """Settings of a data set that has lists of scored outputs too."""

    def rankings(self) -> Sequence[Ranking]:
        """Its lists, one a prompt."""
        ...


@runtime_checkable
class ReferenceSpec(Protocol):
    """Settings of a reference."""

    def build(self, policy: Policy) -> Reference:
        """The reference of ``policy`` as it is now."""
        ...


@runtime_checkable
class SourceSpec(Protocol):
    """Settings of a source of batches."""

    def build(self, policy: Policy, *, seed: int) -> Source:
        """The source, at its beginning."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEMA:
    """The moving average of the policy's weights, which is then what is judged and saved.

    Attributes:
        decay: Upper bound of the decay after n updates, ``min((1 + n) / (10 + n), decay)``; the
            default is that of diffusers' EMAModel.
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"training.ema: decay={self.decay} must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the loop runs.

    Attributes:
        steps: Optimizer updates in all.
        learning_rate: Peak learning rate of AdamW.
        critic_learning_rate: Of the critic's parameters, where the objective has one.
        weight_decay: Decoupled weight decay.
        adam_beta2: AdamW's second moment decay (the first is 0.9).
        warmup_steps: Linear warm-up from 0.
        schedule: Shape of the learning rate after warm-up, reaching 0 just after the last step.
        max_grad_norm: Gradient norm clip; None for none.
        updates_per_batch: Optimizer updates made on each batch of a source.
        rows_per_microbatch: Rows in one forward; None for the whole batch.
        tokens_per_microbatch: Positions in one forward, each prompt counted once, beside or instead
            of ``rows_per_microbatch``; None for the whole batch. What an objective compares stays
            together, even beyond the bounds.
        steps_per_microbatch: Steps in one forward, where steps can be scored apart; None for all.
        log_every: Updates between lines of metrics.jsonl.
        checkpoint_every: Updates between checkpoints; None for the last one only.
        keep_checkpoints: How many to keep (at least 2).
        mixed_precision: Passed to accelerate. float16 would need its loss scaled, and a skipped
            update would leave the scale behind; use bf16.
        max_bad_updates: Stop at so many non-finite updates in a row; fewer are skipped and counted.
        ema: Judge and save a moving average of the weights instead of the last ones; None for no.
        watch_concentration: Updates between measurements of the mass and entropy of the 10
            likeliest symbols, signs of over-optimisation; None for none. For policies of tokens.
        trackers: accelerate trackers: "tensorboard", "wandb", "trackio".
    """

    steps: int = 100
    learning_rate: float = 1e-6
    critic_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float | None = 1.0
    updates_per_batch: int = 1
    rows_per_microbatch: int | None = None
    tokens_per_microbatch: int | None = None
    steps_per_microbatch: int | None = None
    log_every: int = 1
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    mixed_precision: Literal["no", "bf16"] = "no"
    max_bad_updates: int = 1
    ema: WeightEMA | None = None
    watch_concentration: int | None = None
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Judging samples of fixed prompts with fixed seeds, before, during and after training.

    Attributes:
        data: Where the prompts come from; keep them apart from the training prompts.
        judges: Rewards by name; the first is the headline.
        samples: Samples of each prompt; several give the scores of the best of n of them.
        diversity: Distances between the samples of a prompt, by name; each needs two samples.
        collapse_below: Warn where a diversity is below this share of what it was at first.
        every: Updates between evaluations; None for before and after only.
        batch_size: Prompts sampled at a time.
        show: How many prompts keep their samples for the report.
    """

    data: DataSpec
    judges: Mapping[str, RewardModel]
    samples: int = 1
    diversity: Mapping[str, Diversity] = field(default_factory=dict)
    collapse_below: float = 0.5
    every: int | None = None
    batch_size: int = 64
    show: int = 16

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")
        if self.diversity and self.samples < 2:
            raise ValueError(
                f"diversity {next(iter(self.diversity))!r} compares the samples of a prompt, and "
                "samples=1 leaves nothing to compare; use 2 or more"
            )
        if not 0 <= self.collapse_below <= 1:
            raise ValueError(f"collapse_below={self.collapse_below} must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that defines a run. The YAML tree is this tree.

    Attributes:
        policy: What is aligned.
        objective: What is minimised.
        source: Where batches come from.
        reference: What the policy is held to; None for the default: LoRA switched off, the LoRA the
            policy starts from where it starts from one, or a frozen copy under full fine-tuning.
        training: The loop.
        evaluation: Judging, or None.
        output: Folder of metrics, checkpoints, the resolved config and the aligned model.
        seed: Of every random draw.
    """

    policy: PolicySpec
    objective: Objective
    source: SourceSpec
    reference: ReferenceSpec | None = None
    training: Training = field(default_factory=Training)
    evaluation: Evaluation | None = None
    output: str = "runs/run"
    seed: int = 0

    def build(self) -> Trainer:
        """Load everything and check that the parts fit; nothing is trained yet.

        Raises:
            ValueError: Something an objective needs is supplied by nobody, or parts do not fit.
        """
        from mmalign.build import build

        return build(self)

    def train(self, *, resume: bool = False) -> Path:
        """Train; returns the folder of the aligned model.

        Args:
            resume: Continue from the newest complete checkpoint in ``output``.
        """
        return self.build().train(resume=resume)
