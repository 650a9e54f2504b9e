"""Losses of ranked lists: all outputs of a prompt at once.

They share these arguments, lists padded to K entries:

    a or r   ``[P, K]`` what the policy says of each output: a mean log-prob, or an implicit reward
    score    ``[P, K]`` how good it is, higher is better
    valid    ``[P, K]`` bool, False where a list is shorter

and return the unreduced loss ``[P]``. What is not valid enters no maximum, sum or rank, and the
order within a list does not matter.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Temperatures = Literal["scores", "ranks"]
Comparing = Literal["lambda", "ones"]

TIE = 1e-3
"""Implicit rewards nearer than this share a rank: where policy and reference agree up to rounding,
all of them do.
"""


def pro(
    a: Tensor, score: Tensor, valid: Tensor, *, beta: float = 1.0,
    temperatures: Temperatures = "scores",
) -> Tensor:  # fmt: skip
    """Preference ranking: ``sum_k L_k``, each output against all worse ones.

    ``L_k = -log [ exp(T_k a_k) / (exp(T_k a_k) + sum_{j worse than k} exp(T_kj a_j)) ]``

    where ``T_kj = score_k - score_j`` and ``T_k = max_j T_kj``. The released code keeps outputs of
    one score in the order of its file and lets a tied one add ``exp(0)`` to the sum; here an output
    is not compared with its equals, so that the order does not matter.

    Args:
        a: ``[P, K]`` mean log-probs, nats a step.
        score: ``[P, K]``.
        valid: ``[P, K]``.
        beta: What the mean log-probs are multiplied with; the paper's is 1.
        temperatures: "scores" is the above; "ranks" has 1 in place of every T, which is the
            Plackett-Luce likelihood of the order.

    Returns:
        ``[P]``; ``-log sigmoid(beta T (a_1 - a_2))`` for two outputs whose scores differ by T, 0
        for a list whose scores are all equal.

    References:
        2306.17492 and the code released with it.
    """
    if temperatures not in ("scores", "ranks"):
        raise ValueError(f"temperatures={temperatures!r} is unknown; use 'scores' or 'ranks'")
    gap = score.unsqueeze(2) - score.unsqueeze(1)
    worse = (gap > 0) & valid.unsqueeze(2) & valid.unsqueeze(1)
    if temperatures == "ranks":
        gap = torch.ones_like(gap)
    own = torch.where(worse, gap, 0.0).amax(2) * beta * a
    others = torch.where(worse, gap * beta * a.unsqueeze(1), float("-inf"))
    # An output with none below it is compared with itself alone: 0.
    against = torch.cat([own.unsqueeze(2), others], 2).logsumexp(2)
    return torch.where(worse.any(2), against - own, 0.0).sum(1)


def lambda_dpo(r: Tensor, score: Tensor, valid: Tensor, *, weights: Comparing = "lambda") -> Tensor:
    """Listwise logistic loss: ``-sum_{score_i > score_j} lambda_ij LS(r_i - r_j)``.

    ``lambda_ij = |2^score_i - 2^score_j| |1/log(1 + tau_i) - 1/log(1 + tau_j)|``, natural
    logarithms, without gradient: what the DCG of the order by ``r`` would change by if i and j
    swapped places. ``tau`` are ranks by the present ``r``, 1 the largest; implicit rewards nearer
    than 1e-3 are ranked by their scores, so that the start of a run, where all are 0, has an order.

    Args:
        r: ``[P, K]`` implicit rewards ``beta h``.
        score: ``[P, K]``, commonly 0 to 1: the gain is ``2^score``.
        valid: ``[P, K]``.
        weights: "ones" has 1 in place of every lambda; two outputs are then a pair of DPO.

    Returns:
        ``[P]``; ``log 2`` times the sum of the weights where policy and reference agree.

    References:
        2402.01878 (LiPO-lambda).
    """
    if weights not in ("lambda", "ones"):
        raise ValueError(f"weights={weights!r} is unknown; use 'lambda' or 'ones'")
    both = valid.unsqueeze(2) & valid.unsqueeze(1)
    compared = (score.unsqueeze(2) > score.unsqueeze(1)) & both
    weight = torch.ones_like(compared, dtype=r.dtype)
    if weights == "lambda":
        weight = lambda_weights(r, score, valid)
    margin = r.unsqueeze(2) - r.unsqueeze(1)
    return -torch.where(compared, weight * logsigmoid(margin), 0.0).sum((1, 2))


@torch.no_grad()
def lambda_weights(r: Tensor, score: Tensor, valid: Tensor) -> Tensor:
    """``[P, K, K]`` the weights of `lambda_dpo`; of two equal scores they are 0."""
    ahead = r.unsqueeze(1) - r.unsqueeze(2)
    above = score.unsqueeze(1) - score.unsqueeze(2)
    tied = ahead.abs() <= TIE
    # [p, i, j]: how much of j stands before i; equals in both share their places.
    before = torch.where(tied, (above > 0) + 0.5 * (above == 0), (ahead > 0).to(r))
    before = before * (~torch.eye(r.shape[1], dtype=torch.bool, device=r.device))
    rank = 1 + (before * valid.unsqueeze(1)).sum(2)
    gain, discount = torch.exp2(score), 1 / torch.log1p(rank)
    gains = (gain.unsqueeze(2) - gain.unsqueeze(1)).abs()
    return gains.to(r) * (discount.unsqueeze(2) - discount.unsqueeze(1)).abs()
