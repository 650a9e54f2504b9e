"""Credit: from rewards to advantages. Nothing here carries a gradient to the policy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]


def group_advantage(
    reward: Tensor,
    group: Tensor,
    *,
    scale: Scale,
    eps: float = 1e-4,
    population: bool = False,
    batch_reward: Tensor | None = None,
) -> Tensor:
    """How much better a row is than its group: ``A = (r - mean_group(r)) / (std(r) + eps)``.

    Args:
        reward: ``[B]``. A NaN says that nobody judged the row: it enters no statistic and its
            advantage is 0.
        group: ``[B]`` int64; rows with one number are compared.
        scale: "group" divides by the group's standard deviation, "batch" by that of the whole
            batch, "none" by nothing (then eps is not read either).
        eps: Added to the standard deviation, units of reward.
        population: Divide the sum of squares by n instead of n - 1.
        batch_reward: ``[M]`` the rewards of the whole batch over all processes, for ``"batch"``;
            None where ``reward`` holds them all.

    Returns:
        ``[B]``, no gradient. Exactly 0 in a group whose rewards are equal, or of which one row
        alone was judged.

    Raises:
        ValueError: A group has one row (its advantage would be 0 whatever it earned), or a reward
            is infinite or not ``[B]``.

    References:
        2402.03300, section 4.1.2; unbiased deviation and eps as in common code. "none" is
        2503.20783; "batch" with ``population=True`` is 2505.05470.
    """
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale={scale!r} is unknown; use 'group', 'batch' or 'none'")
    _check_rewards(reward, group)
    # Counted rewards (right answers, say) may be integers; advantages are not.
    reward = reward.detach() if reward.is_floating_point() else reward.float()
    judged = ~reward.isnan()
    _, member = torch.unique(group, return_inverse=True)
    size = int(member.max()) + 1 if len(member) else 0
    rows = torch.bincount(member, minlength=size)
    if bool((rows == 1).any()):
        alone = group[rows[member] == 1].tolist()
        raise ValueError(
            f"group {alone[0]} has one row, and a row is only better or worse than others of its "
            "group; sample at least 2 outputs a prompt (num_generations)"
        )
    exact = torch.where(judged, reward.double(), 0.0)
    count = torch.bincount(member, weights=judged.double(), minlength=size)
    mean = torch.bincount(member, weights=exact, minlength=size) / count.clamp(min=1)
    centred = torch.where(judged & ~tied_rows(reward, group), exact - mean[member], 0.0)
    if scale == "group":
        squares = torch.bincount(member, weights=centred.square(), minlength=size)
        freedom = count if population else count - 1
        spread = (squares / freedom.clamp(min=1)).sqrt()[member]
        centred = centred / (spread + eps)
    elif scale == "batch":
        everywhere = (reward if batch_reward is None else batch_reward).detach().double()
        centred = centred / (_deviation(everywhere[~everywhere.isnan()], population) + eps)
    return centred.to(reward.dtype)


def tied_rows(reward: Tensor, group: Tensor) -> Tensor:
    """Rows of groups whose judged rewards are all equal: ``[B]`` bool.

    Equality is exact, since a mean of equal numbers may differ from them by a rounding.
    """
    _, member = torch.unique(group, return_inverse=True)
    size = int(member.max()) + 1 if len(member) else 0
    exact, judged = reward.double(), ~reward.isnan()
    highest = exact.new_full((size,), -torch.inf)
    highest = highest.scatter_reduce(0, member, exact.masked_fill(~judged, -torch.inf), "amax")
    lowest = exact.new_full((size,), torch.inf)
    lowest = lowest.scatter_reduce(0, member, exact.masked_fill(~judged, torch.inf), "amin")
    return (highest <= lowest)[member]


def gae(
    reward: Tensor, value: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, backwards over the steps the policy took.

    ``delta_t = r_t + gamma V_next - V_t`` and ``A_t = delta_t + gamma lam A_next``, where *next* is
    the row's next step with ``mask``: masked steps between two decisions (observations) are carried
    across, and beyond the last decision both are 0.

    Args:
        reward: ``[B, T]`` reward of each step; read where ``mask`` holds.
        value: ``[B, T]`` value of the state BEFORE each step, units of reward.
        mask: ``[B, T]`` bool, True where the policy decided.
        gamma: Discount of a step.
        lam: 1 is reward-to-go minus value, 0 the one-step error.

    Returns:
        ``(advantage, returns)``, both ``[B, T]``, 0 where masked; ``returns = advantage + value``,
        taken before any whitening.

    References:
        1506.02438, equation 16.
    """
    reward, value = reward.detach(), value.detach()
    following, carried = torch.zeros_like(value[:, 0]), torch.zeros_like(value[:, 0])
    columns = []
    for t in range(value.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = reward[:, t] + gamma * following - value[:, t]
        carried = torch.where(here, delta + gamma * lam * carried, carried)
        following = torch.where(here, value[:, t], following)
        columns.append(torch.where(here, carried, torch.zeros_like(carried)))
    advantage = torch.stack(columns[::-1], dim=1)
    return advantage, torch.where(mask, advantage + value, torch.zeros_like(value))


def whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, batch_values: Tensor | None = None
) -> Tensor:
    """``(x - mean) / sqrt(var + 1e-8)`` over the masked entries, with the unbiased variance.

    Args:
        x: Any shape.
        mask: Same shape, bool.
        shift_mean: False keeps the mean: ``x / sqrt(var + 1e-8)`` moved back onto it.
        batch_values: ``[M]`` the masked entries over all processes; None where x holds them all.

    Returns:
        Same shape, 0 where masked. Fewer than two entries have no variance and only lose their
        mean.
    """
    entries = (x[mask] if batch_values is None else batch_values).double()
    if not len(entries):
        return torch.zeros_like(x)
    mean = entries.mean()
    scale = (entries.var() + 1e-8).rsqrt() if len(entries) > 1 else entries.new_ones(())
    white = (x.double() - mean) * scale
    if not shift_mean:
        white = white + mean
    return torch.where(mask, white, torch.zeros_like(white)).to(x.dtype)


def _deviation(values: Tensor, population: bool) -> Tensor:
    if len(values) < 2:
        return values.new_zeros(())
    return values.std(correction=0 if population else 1)


def _check_rewards(reward: Tensor, group: Tensor) -> None:
    if reward.dim() != 1 or reward.shape != group.shape:
        raise ValueError(
            f"rewards of shape {tuple(reward.shape)} cannot be compared in groups of shape "
            f"{tuple(group.shape)}; give one number a row (combine several objectives first)"
        )
    if bool(reward.isinf().any()):
        raise ValueError("a reward is infinite; an advantage needs finite rewards")
