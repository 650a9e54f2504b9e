"""Objectives of pictures that no other claim has: models before and after a short run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import (
    GRADED,
    aligned,
    judged_exactly,
    measured,
    start,
    trained,
)

HELDOUT = 300
STARTS = {
    "diffusion": "diffusion/diffusion_dpo",
    "flow": "diffusion/flow_dpo",
    "AR image": "vision/ar_dpo",
    "LVLM": "vision/lvlm_dpo",
}
DENOISER = ("training.steps=20", "policy.draws=2", "training.learning_rate=4e-4")
LISTS = ("training.steps=20", "source.batch_size=8")
TOKENS = ("training.steps=24", "source.batch_size=16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One objective of one model.

    Attributes:
        config: A shipped one.
        objective: Its registered name.
        changes: To the config's settings.
    """

    config: str
    objective: str
    changes: tuple[str, ...]


def _denoiser(config: str, objective: str, batch_size: int = 16) -> Arm:
    """An arm of a bound: fewer rows and draws than the shipped config, at twice its rate."""
    changes = (*DENOISER, f"source.batch_size={batch_size}")
    return Arm(config=f"diffusion/{config}", objective=objective, changes=changes)


ARMS: Mapping[str, Arm] = {
    "diffusion, mapo": _denoiser("diffusion_mapo", "mapo"),
    "flow, mapo": _denoiser("flow_mapo", "mapo"),
    "diffusion, kto": _denoiser("diffusion_kto", "kto", batch_size=48),
    "diffusion, pro": Arm(config="diffusion/diffusion_pro", objective="pro", changes=LISTS),
    "AR image, simpo": Arm(config="vision/ar_simpo", objective="simpo", changes=TOKENS),
    "AR image, tdpo2": Arm(config="vision/ar_tdpo", objective="tdpo2", changes=TOKENS),
    "AR image, pro": Arm(
        config="vision/ar_pro",
        objective="pro",
        changes=("training.steps=24", "source.batch_size=8"),
    ),
    "LVLM, kto": Arm(
        config="vision/lvlm_kto",
        objective="kto",
        changes=("training.steps=24", "source.batch_size=32"),
    ),
    "LVLM, simpo": Arm(config="vision/lvlm_simpo", objective="simpo", changes=TOKENS),
    "LVLM, mpo": Arm(config="vision/lvlm_mpo", objective="mpo", changes=TOKENS),
}
"""The model before the comma."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The models as they are, and after each objective."""
    names = [name for arm in ARMS for name in (before_of(arm), arm)]
    return {
        name: measured(folder / f"{name}.json", partial(_judged, name, folder, seed))
        for name in names
    }


def _judged(name: str, folder: Path, seed: int) -> dict[str, list[float]]:
    model = name.partition(",")[0]
    policy = aligned(learned(name, folder, seed)) if name in ARMS else start(STARTS[model])
    task = "describe" if model == "LVLM" else "draw"
    return judged_exactly(policy, task, size=HELDOUT, seed=seed)


def before_of(arm: str) -> str:
    """What an arm is compared with."""
    return f"{arm.partition(',')[0]}, before"


def learned(name: str, folder: Path, seed: int) -> Path:
    """The run of an arm."""
    arm = ARMS[name]
    changes = [*arm.changes, f"source.data.seed={seed}"]
    return trained(arm.config, folder / name, seed=seed, overrides=changes)


CLAIM = Claim(
    statement=(
        "mapo, on a diffusion model and on a flow, and what other claims leave out of the shipped "
        "configs of recorded pictures, improve what models draw and say of pictures."
    ),
    source="2406.06424, 2404.04465, 2306.17492, 2405.14734, 2404.11999",
    notes=(
        "Short runs of the shipped configs: 20 updates of denoisers, at twice the rate and with "
        "fewer rows and draws, and 24 of the others. mapo at its published scale of 1000 did not "
        "make better pictures (seed 10, 200 prompts: 0.789 from 0.773 and 0.764 from 0.789 graded, "
        "both less often exactly right); its configs have 100, and a beta of 1 for the diffusion, "
        "chosen at that seed. pro with an autoregressive image model was tried there at a beta of "
        "5 and of 20 and with a fifth of the weight on likelihood too, and did not rise (0.901 to "
        "0.896 from 0.905)."
    ),
    run=run,
    objectives=tuple(sorted({arm.objective for arm in ARMS.values()})),
    comparisons=tuple(Comparison(metric=GRADED, arm=arm, over=before_of(arm)) for arm in ARMS),
    seeds=3,
)
