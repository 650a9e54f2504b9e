"""The same objectives on recorded pairs of pictures: a diffusion model and an AR image model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import GRADED, aligned, judged_exactly, start, trained

HELDOUT = 250
ROWS = "{type: tinyworld, task: draw, size: 4000, seed: SEED}"
UNPAIRED = "{type: unpaired, rows: pairs, data: ROWS, batch_size: 48, mismatched: MIS}"
"""Unpaired rows for kto: half as many again as the pairs have, since each says less."""
CONFIGS = {"diffusion": "diffusion/diffusion_dpo", "AR image": "vision/ar_dpo"}
SHORT = {
    "diffusion": (
        "training.steps=20",
        "policy.draws=2",
        "training.learning_rate=4e-4",
        "source.batch_size=16",
    ),
    "AR image": ("training.steps=24", "source.batch_size=16"),
}
OBJECTIVES = {
    "diffusion": {
        "dpo": "{type: dpo, beta: 200}",
        "ipo": "{type: ipo, beta: 50}",
        "kto": "{type: kto, beta: 400, kl_point: matched}",
        "rdpo": "{type: rdpo, beta: 200, label_smoothing: 0.1}",
        "latent_em": "{type: latent_em, of: {type: dpo, beta: 200}}",
    },
    "AR image": {
        "dpo": "{type: dpo, beta: 0.1}",
        "ipo": "{type: ipo, beta: 0.5}",
        "kto": "{type: kto, beta: 0.2}",
        "rdpo": "{type: rdpo, beta: 0.1, label_smoothing: 0.1}",
        "latent_em": "{type: latent_em, of: {type: dpo, beta: 0.1}}",
    },
}


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Both models as they are, and after each objective."""
    rows = ROWS.replace("SEED", str(seed))
    arms = {}
    for model, config in CONFIGS.items():
        before = judged_exactly(start(config), "draw", size=HELDOUT, seed=seed)
        arms[f"{model}, before"] = before
        for name, objective in OBJECTIVES[model].items():
            mismatched = str(model == "AR image").lower()
            source = UNPAIRED.replace("ROWS", rows).replace("MIS", mismatched)
            data = f"source={source}" if name == "kto" else f"source.data={rows}"
            output = trained(
                config,
                folder / f"{Path(config).name}-{name}",
                seed=seed,
                overrides=[f"objective={objective}", data, *SHORT[model]],
            )
            arm = judged_exactly(aligned(output), "draw", size=HELDOUT, seed=seed)
            arms[f"{model}, {name}"] = arm
    return arms


CLAIM = Claim(
    statement=(
        "dpo, ipo, kto, rdpo and latent_em, as they are for text, improve what a diffusion model "
        "and an autoregressive image model draw."
    ),
    source="2305.18290, 2310.12036, 2402.01306, 2403.00409, 2509.24159",
    notes=(
        "Short runs of 20 (diffusion) and 24 (AR image) updates. kto sees single outputs, half as "
        "many again as the pairs have sides. rdpo takes a tenth of the labels to be wrong; none "
        "is."
    ),
    run=run,
    objectives=("dpo", "ipo", "kto", "rdpo", "latent_em"),
    comparisons=tuple(
        Comparison(metric=GRADED, arm=f"{model}, {name}", over=f"{model}, before")
        for model, objectives in OBJECTIVES.items()
        for name in objectives
    ),
    seeds=3,
)
