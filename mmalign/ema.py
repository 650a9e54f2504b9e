"""The moving average of the policy's weights: what is judged and saved, where a run asks for it.

Training itself goes on with the weights as they are. Under LoRA the factors A and B are averaged
each for itself, since what is saved must be a LoRA of the same rank; a reference that follows the
policy averages their products instead (`mmalign.references.average`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmalign.optim import CRITIC
from mmalign.run import WeightEMA


class AveragedWeights:
    """``average = d average + (1 - d) weights`` after each update, in float32.

    ``d = min((1 + n) / (10 + n), decay)`` after n updates: 2/11, 3/12, ... so that a short run is
    not held back by where it began (as diffusers' EMAModel without warm-up).

    Args:
        parameters: What is trained, by name; a critic is left out.
        settings: The run's.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: WeightEMA) -> None:
        self.parameters = {k: p for k, p in parameters.items() if not k.startswith(CRITIC)}
        self.settings = settings
        self.average = {k: p.detach().float().clone() for k, p in self.parameters.items()}

    def after_update(self, step: int) -> None:
        """Take in the weights after update ``step`` (from 1)."""
        decay = min((1 + step) / (10 + step), self.settings.decay)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter.detach().float(), 1 - decay)

    def tensors(self) -> Mapping[str, Tensor]:
        """The average."""
        return self.average

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        assert tensors.keys() == self.average.keys(), "another policy's average"
        for name, value in self.average.items():
            value.copy_(tensors[name])

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within, the policy has the averaged weights, rounded to its precision."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
