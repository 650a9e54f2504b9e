"""A policy that is a table, and batches of it: the smallest thing the objectives can be run on.

States and symbols are recorded, so scoring is a lookup. It is exact, differentiable, float64, and
each of its steps can be scored alone.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmalign.types import Batch, Scores, Trajectory

NUM_STATES, NUM_SYMBOLS = 7, 5
UNIFORM = math.log(NUM_SYMBOLS)


class Tabular(nn.Module):
    """Logits ``[S, V]`` and values ``[S]`` of states that stand in the trajectory.

    Different seeds are neighbours: their ratios lie on both sides of the usual clip ranges.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        shape = NUM_STATES, NUM_SYMBOLS + 1
        common, own = (torch.Generator().manual_seed(s) for s in (99, seed))
        table = torch.randn(shape, generator=common, dtype=torch.float64)
        table += 0.3 * torch.randn(shape, generator=own, dtype=torch.float64)
        self.logits = nn.Parameter(table[:, 1:].clone())
        self.value = nn.Parameter(table[:, 0].clone())

    def scores(self, trajectory: Trajectory) -> Scores:
        mask, state = trajectory.mask, trajectory.stepwise["state"]
        table = self.logits.log_softmax(-1)
        taken = table[state, trajectory.stepwise["symbol"]]
        entropy = -(table.exp() * table).sum(-1)[state]
        zero = torch.zeros_like(taken)
        return Scores(
            log_probs=torch.where(mask, taken, zero),
            entropy=torch.where(mask, entropy, zero),
            kl=torch.where(mask, (table.exp() * (table + 1.6)).sum(-1)[state], zero),
            kl_forward=torch.where(mask, -(table + UNIFORM).mean(-1)[state], zero),
            reference=torch.where(mask, zero - UNIFORM, zero),
            log_collision=torch.where(mask, (2 * table).logsumexp(-1)[state], zero).detach(),
            features=self.logits[state].detach(),
            values=torch.where(mask, self.value[state], zero),
        )


def trajectory(
    lengths: Sequence[int], prompt_of: Sequence[int], *, seed: int = 0, separable: bool = True
) -> Trajectory:
    """Random symbols in random states; rows as long as asked, padded with random garbage."""
    draw = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    stepwise = {
        "state": torch.randint(0, NUM_STATES, (rows, longest), generator=draw),
        "symbol": torch.randint(0, NUM_SYMBOLS, (rows, longest), generator=draw),
    }
    count = max(prompt_of) + 1
    return Trajectory(
        mask=mask,
        prompt_of=torch.tensor(prompt_of),
        static={"number": torch.arange(count), "name": [f"prompt {i}" for i in range(count)]},
        stepwise=stepwise,
        outputs=[f"row {i}" for i in range(rows)],
        separable=separable,
    )


def batch(
    rewards: Sequence[Sequence[float]], *, longest: int = 6, seed: int = 0, separable: bool = True
) -> Batch:
    """One group per entry of ``rewards``, rows of different lengths, nothing scored."""
    draw = torch.Generator().manual_seed(seed + 100)
    sizes = [len(r) for r in rewards]
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    lengths = torch.randint(1, longest + 1, (len(group),), generator=draw)
    lengths[0] = longest
    made = trajectory(lengths.tolist(), group.tolist(), seed=seed, separable=separable)
    return Batch(
        trajectory=made,
        group=group,
        reward=torch.tensor([x for r in rewards for x in r], dtype=torch.float64),
        weight=made.mask.double(),
    )


@torch.no_grad()
def scored(
    made: Batch, *, reference: Tabular | None = None, behaviour: Tabular | None = None
) -> Batch:
    """The batch with the log-probs of a reference and of the policy that sampled."""
    if reference is not None:
        made = replace(made, reference=reference.scores(made.trajectory).log_probs)
    if behaviour is not None:
        found = behaviour.scores(made.trajectory)
        made = replace(made, behaviour=found.log_probs, values=found.values)
    return made


def padded(made: Batch, columns: int) -> Batch:
    """The batch with masked columns of garbage behind every row."""

    def wider(x: Tensor, filler: float) -> Tensor:
        return torch.cat([x, x.new_full((*x.shape[:1], columns), filler)], dim=1)

    fields = {
        name: wider(getattr(made, name), 0.0)
        for name in ("weight", "reference", "behaviour", "values", "step_reward", "step_of")
        if getattr(made, name) is not None
    }
    return replace(
        made,
        trajectory=replace(
            made.trajectory,
            mask=wider(made.trajectory.mask, False),
            stepwise={k: wider(v, 3) for k, v in made.trajectory.stepwise.items()},
        ),
        **fields,
    )
