"""Advantages, returns and aggregations in NumPy float64 with plain loops; nothing of mmalign."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def group_advantage(reward, group, *, scale, eps=1e-4, population=False):
    reward, group = np.asarray(reward, float), np.asarray(group)
    out = np.zeros_like(reward)
    for number in np.unique(group):
        rows = group == number
        centred = reward[rows] - reward[rows].mean()
        if np.ptp(reward[rows]) == 0:
            centred = np.zeros_like(centred)
        if scale == "group":
            centred = centred / (reward[rows].std(ddof=0 if population else 1) + eps)
        if scale == "batch":
            centred = centred / (reward.std(ddof=0 if population else 1) + eps)
        out[rows] = centred
    return out


def gae(reward, value, mask, *, gamma, lam):
    """Row by row on the decisions alone: what is masked is taken out, not multiplied by 0."""
    advantage, returns = np.zeros_like(reward), np.zeros_like(reward)
    for b in range(len(reward)):
        steps = np.flatnonzero(mask[b])
        r, v = reward[b, steps], value[b, steps]
        for i in range(len(steps)):
            total, discount = 0.0, 1.0
            for j in range(i, len(steps)):
                following = v[j + 1] if j + 1 < len(steps) else 0.0
                total += discount * (r[j] + gamma * following - v[j])
                discount *= gamma * lam
            advantage[b, steps[i]] = total
            returns[b, steps[i]] = total + v[i]
    return advantage, returns


def whiten(x, mask, *, shift_mean=True):
    chosen = x[mask]
    white = (chosen - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)
    out = np.zeros_like(x)
    out[mask] = white if shift_mean else white + chosen.mean()
    return out


def surrogate(log_probs, behaviour, advantage, *, epsilon, epsilon_high):
    ratio = np.exp(log_probs - behaviour)
    clipped = np.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    return -np.minimum(ratio * advantage, clipped * advantage)


def aggregate(losses, mask, *, how, max_length=None):
    """The mean loss of a batch from its step losses ``[B, T]``."""
    rows = [losses[b, mask[b]] for b in range(len(losses))]
    if how == "sequence":
        return float(np.mean([row.mean() for row in rows]))
    if how == "token":
        return float(np.concatenate(rows).mean())
    return sum(float(row.sum()) for row in rows) / (len(rows) * max_length)
