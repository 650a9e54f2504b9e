"""Rewards and judges: callables ``(prompts, outputs) -> [B]`` or ``[B, K]``, higher is better."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.protocols import RewardModel
from mmalign.types import Output, Prompt


def judged(reward: RewardModel, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
    """The reward's verdicts, checked.

    Args:
        reward: Any reward model.
        prompts: ``B`` prompts, one per output.
        outputs: ``B`` outputs.

    Returns:
        ``[B]`` or ``[B, K]`` float32 on the CPU.

    Raises:
        ValueError: The reward failed, returned another number of values, or one that is not finite.
            A failing reward is never turned into a 0.
    """
    name = type(reward).__name__
    try:
        values = reward(prompts, outputs)
    except Exception as error:
        raise ValueError(f"reward {name} failed on {len(outputs)} outputs: {error}") from error
    values = torch.as_tensor(values, dtype=torch.float32).detach().cpu()
    if values.shape[0] != len(outputs):
        raise ValueError(f"reward {name} returned {len(values)} values for {len(outputs)} outputs")
    bad = (~torch.isfinite(values.view(len(outputs), -1)).all(1)).nonzero().flatten().tolist()
    if bad:
        row = bad[0]
        raise ValueError(
            f"reward {name} returned {values[row].tolist()} for row {row} "
            f"(prompt {prompts[row].content!r}, output {outputs[row]!r}); {len(bad)} such rows"
        )
    return values
