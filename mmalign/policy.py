"""The policy: an adapter, the network it drives and, for actor-critic objectives, a critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from mmalign import lora
from mmalign.protocols import Adapter, Likelihood, Want
from mmalign.types import Prompt, Scores, Trajectory

NOTHING: Want = frozenset()


class ValueHead(nn.Module):
    """State values from an adapter's features: a two-layer perceptron in float32.

    The features are detached, so the critic's regression never moves the policy.
    """

    def __init__(self, feature_size: int, *, hidden_size: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_size)
        self.hidden = nn.Linear(feature_size, hidden_size)
        self.value = nn.Linear(hidden_size, 1)
        # The first values are 0, so that the first advantages are the rewards themselves.
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, T, F]`` features to ``[B, T]`` values in units of reward."""
        hidden = torch.tanh(self.hidden(self.norm(features.detach().float())))
        values: Tensor = self.value(hidden)
        return values.squeeze(-1)


class Scorer(nn.Module):
    """Scoring as one module's forward, which is what a distributed wrapper can synchronise."""

    def __init__(self, adapter: Adapter, model: nn.Module, critic: nn.Module | None) -> None:
        super().__init__()
        self.adapter = adapter
        self.model = model
        self.critic = critic

    def forward(
        self, trajectory: Trajectory, want: Want, against: nn.Module | None
    ) -> dict[str, Tensor]:
        """The fields of `Scores` that are present: a dict, since wrappers look into dicts."""
        asked = want | {"features"} if self.critic is not None else want
        scores = self.adapter.scores(self.model, trajectory, want=asked, against=against)
        found = {f.name: getattr(scores, f.name) for f in fields(scores)}
        if self.critic is not None:
            found["values"] = self.critic(scores.features)
        if "features" not in want:
            found["features"] = None
        return {k: v for k, v in found.items() if v is not None}


class Policy:
    """What is being aligned.

    Args:
        adapter: Knows the modality.
        model: The network that decides; its parameters that require a gradient are trained.
        critic: ``feature_size`` to value, for objectives that need values.
    """

    def __init__(
        self, *, adapter: Adapter, model: nn.Module, critic: nn.Module | None = None
    ) -> None:
        self.adapter = adapter
        self.scorer = Scorer(adapter, model.eval(), critic)
        self.wrapped: nn.Module = self.scorer
        self.autocast: Callable[[], AbstractContextManager[object]] = nullcontext
        # Loads another model, whole, with this one's settings; a run knows them and sets it.
        self.like: Callable[[str], Policy] | None = None

    @property
    def model(self) -> nn.Module:
        """The bare network."""
        return self.scorer.model

    @property
    def critic(self) -> nn.Module | None:
        """The bare critic."""
        return self.scorer.critic

    @property
    def likelihood(self) -> Likelihood:
        """Whether log-probs are exact or a bound."""
        return self.adapter.likelihood

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def scores(
        self,
        trajectory: Trajectory,
        *,
        want: Want = NOTHING,
        against: nn.Module | None = None,
    ) -> Scores:
        """Log-probs and what else is wanted, through the (possibly distributed) wrapper."""
        return Scores(**self.wrapped(trajectory, want, against))

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` trajectories of each prompt, with decoded outputs.

        In the precision that the trainer scores in, so that both say the same of a sample.
        """
        with self.autocast():
            return self.adapter.sample(
                self.model, prompts, group_size=group_size, generators=generators
            )

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training moves, by name."""
        return {k: p for k, p in self.scorer.named_parameters() if p.requires_grad}

    def lora_name(self) -> str | None:
        """The LoRA being trained, or None under full fine-tuning."""
        return lora.merge_name(self.model) if lora.names(self.model) else None

    def on_accelerator(self) -> Policy:
        """The same policy, its network on this process's accelerator (the CPU where there is none).

        For whatever uses a policy without a trainer, which does this itself.
        """
        self.model.to(PartialState().device)
        return self

    def save(self, directory: str | Path) -> None:
        """Write the policy as transformers / peft / diffusers load it."""
        self.adapter.save(self.model, Path(directory))
