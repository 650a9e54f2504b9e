"""What training does to the likelihoods of held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmalign.diagnostics import likelihood
from mmalign.diagnostics.measuring import PairScores, Settings, score_pairs
from mmalign.policy import Policy
from mmalign.references import Frozen
from mmalign.tinyworld.tasks import TASKS
from mmalign.types import Preference

HELDOUT = 400
CHOSEN = "nats by which the chosen output became likelier"
REJECTED = "nats by which the rejected output became likelier"


def heldout(task: str) -> Sequence[Preference]:
    """`HELDOUT` held-out pairs of a task."""
    return TASKS[task].preferences(size=HELDOUT, seed=7, split="heldout")


def scored(policy: Policy, before: Policy, pairs: Sequence[Preference]) -> PairScores:
    """Log-probs of pairs under a policy and under what it was."""
    reference = Frozen().build(before)
    return score_pairs(policy, reference, pairs, Settings(batch_size=64))


def displaced(found: PairScores) -> Mapping[str, list[float]]:
    """How far both sides of each pair were moved."""
    moved = likelihood.displacement(found.s_w, found.s_l, found.ref_s_w, found.ref_s_l)
    return {CHOSEN: moved.chosen.tolist(), REJECTED: moved.rejected.tolist()}
