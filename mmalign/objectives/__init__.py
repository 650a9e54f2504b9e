"""Objectives: what training minimises, each a frozen dataclass of its hyperparameters.

An objective knows batches and scores, never a modality.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmalign.objectives.dpo import DPO
from mmalign.objectives.grpo import GRPO
from mmalign.objectives.ipo import IPO
from mmalign.objectives.ppo import PPO
from mmalign.protocols import Objective

OBJECTIVES: Mapping[str, type[Objective]] = {
    "dpo": DPO,
    "ipo": IPO,
    "grpo": GRPO,
    "ppo": PPO,
}

__all__ = ["DPO", "GRPO", "IPO", "OBJECTIVES", "PPO"]
