"""Online against offline DPO at equal pictures: drawn by the policy as it is, or as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.claims import Claim, Comparison
from mmalign.tinyworld.claims.common import (
    EXACT,
    GRADED,
    aligned,
    built,
    judged_exactly,
    start,
    trained,
)

CONFIG = "vision/ar_online_dpo"
UPDATES, PROMPTS, PICTURES = 80, 12, 6
"""Of the online run: updates, prompts of an update, pictures of a prompt."""
HELDOUT = 766
"""All there are."""
GUIDANCE = "guidance_scale: 1.0"
POLICY = "policy.guidance_scale=1.0"
RATES = {"offline": "training.learning_rate=1e-3", "online": "training.learning_rate=2e-3"}
"""The best of each in the same search: see the claim's notes."""


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """The model as it is, and trained on as many of its pictures drawn before or meanwhile."""
    judge = "{type: tinyworld, partial: true}"
    prompts = f"{{type: tinyworld, task: draw, size: {UPDATES * PROMPTS}, seed: {seed}}}"
    file = built(
        "pairs",
        folder / "pairs.jsonl",
        seed=seed,
        shipped="diffusion/data/pairs",
        settings=[
            f"policy={{type: ar_image, model: tinyworld/ar_image, {GUIDANCE}}}",
            f"data={prompts}",
            f"reward={judge}",
            f"num_generations={PICTURES}",
            "selector.min_margin=0",
            "batch_size=16",
        ],
    )
    sources = {
        "offline": f"{{type: preferences, data: {{type: file, path: {file}}}, batch_size: SIZE}}",
        "online": (
            f"{{type: rollouts, data: {prompts}, reward: {judge}, num_generations: {PICTURES}, "
            "selector: {type: best_worst}, batch_size: SIZE}"
        ),
    }
    arms = {"before": judged_exactly(start(CONFIG, (POLICY,)), "draw", size=HELDOUT, seed=seed)}
    for name, source in sources.items():
        output = trained(
            CONFIG,
            folder / name,
            seed=seed,
            overrides=[
                f"source={source.replace('SIZE', str(PROMPTS))}",
                f"training.steps={UPDATES}",
                RATES[name],
                POLICY,
            ],
        )
        arms[name] = judged_exactly(aligned(output), "draw", size=HELDOUT, seed=seed)
    return arms


CLAIM = Claim(
    statement=(
        "At equal numbers of judged pictures and of updates, an autoregressive image model draws "
        "better after online DPO than after DPO on pairs that it drew before training."
    ),
    source="2402.04792",
    notes=(
        "Codes of an autoregressive model, drawn without guidance. Each side has the better "
        "rate for it of 1e-3 and 2e-3 at one seed, where offline pairs reached 0.937 and 0.910 "
        "and online ones 0.936 and 0.944. After half as many updates they were equal at 5e-4 "
        "and 1e-3, and 3e-3 took offline pairs to 0.905 and 0.801 and online ones to 0.935 and "
        "0.931 (two seeds). Offline pairs at 5e-4 reached 0.931 after all 80. It did not show "
        "on denoisers. On the diffusion, which learns less in 20 updates of 64 pictures, the "
        "difference was 0.010 [-0.002, 0.023] over three seeds, and -0.035 at one of them. On "
        "the flow with four moves, which starts at 0.763 (one seed): after 60 updates of 72 "
        "pictures offline pairs reached 0.820, 0.822 and 0.749 at 1e-4, 2e-4 and 4e-4, and "
        "online ones 0.811 and 0.796 at the first and the last; after 120, offline 0.820 at "
        "1e-4 and online 0.819 at 2e-4."
    ),
    run=run,
    objectives=("dpo",),
    comparisons=(
        Comparison(metric=GRADED, arm="online", over="before"),
        Comparison(metric=GRADED, arm="online", over="offline"),
        Comparison(metric=EXACT, arm="online", over="offline"),
    ),
    seeds=3,
)
