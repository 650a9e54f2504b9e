"""TDPO2: token-level DPO scores as DPO does and stays nearer to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mmalign.claims import Claim, Comparison
from mmalign.policy import Policy
from mmalign.rng import generator
from mmalign.tinyworld.claims.common import (
    BATCH,
    EXACT,
    aligned,
    judged_exactly,
    start,
    trained,
)
from mmalign.tinyworld.claims.likelihoods import HELDOUT, heldout
from mmalign.types import Preference

CONFIG = "text/tdpo"
TASK = "arithmetic"
SAME = ("training.learning_rate=1e-3", "training.steps=60", "source.batch_size=16")
OBJECTIVES = {"dpo": "{type: dpo, beta: 0.1}", "tdpo2": "{type: tdpo2, beta: 0.1, alpha: 0.5}"}
CHOSEN_KL = "sequential KL on chosen answers, nats"
REJECTED_KL = "sequential KL on rejected answers, nats"


def run(folder: Path, seed: int) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Score, and distance from the reference on held-out pairs, after both objectives."""
    before, pairs = start(CONFIG), heldout(TASK)
    data = f"source.data={{type: tinyworld, task: {TASK}, size: 2000, seed: {seed}}}"
    arms = {"before": judged_exactly(before, TASK, size=HELDOUT, seed=seed, graded=False)}
    for name, objective in OBJECTIVES.items():
        output = trained(
            CONFIG,
            folder / name,
            seed=seed,
            overrides=[f"objective={objective}", data, *SAME],
        )
        policy = aligned(output)
        arms[name] = {
            **judged_exactly(policy, TASK, size=HELDOUT, seed=seed, graded=False),
            **divergences(policy, before, pairs),
        }
    return arms


@torch.no_grad()
def divergences(
    policy: Policy, before: Policy, pairs: Sequence[Preference]
) -> dict[str, list[float]]:
    """``KL(before || policy)``, exact at every token and summed over each side of each pair."""
    found: list[torch.Tensor] = []
    for begin in range(0, len(pairs), BATCH):
        part = pairs[begin : begin + BATCH]
        rows = policy.adapter.encode(
            [pair.prompt for pair in part],
            [[pair.chosen, pair.rejected] for pair in part],
            generators=[generator(0, "encode") for _ in part],
        )
        scores = policy.scores(rows, want=frozenset({"kl_forward"}), against=before.model)
        assert scores.kl_forward is not None
        found.append(scores.kl_forward.sum(1).view(-1, 2))
    chosen, rejected = torch.cat(found).unbind(1)
    return {CHOSEN_KL: chosen.tolist(), REJECTED_KL: rejected.tolist()}


CLAIM = Claim(
    statement="TDPO2 scores as DPO does, at a lower sequential KL to the reference.",
    source="2404.11999",
    notes=(
        "At equal settings; the divergence is that of the reference to the policy, exact at every "
        "token."
    ),
    run=run,
    objectives=("dpo", "tdpo2"),
    comparisons=(
        Comparison(metric=CHOSEN_KL, arm="tdpo2", over="dpo", sign="lower"),
        Comparison(metric=REJECTED_KL, arm="tdpo2", over="dpo", sign="lower"),
        Comparison(metric=EXACT, arm="tdpo2", over="dpo", sign="kept", margin=0.02),
    ),
    seeds=3,
)
