"""What must hold in every run, checked while it runs.

Each of these has cost somebody weeks in a tool that did not check it: a LoRA that receives no
gradient, a reference that is the policy itself or that moves, images that never reached the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmalign.objectives.anchored import Anchored
from mmalign.objectives.lambda_dpo import LambdaDPO
from mmalign.objectives.logic import Logic
from mmalign.objectives.opa_dpo import OPADPO
from mmalign.objectives.pair import PairObjective
from mmalign.objectives.unpaired import UnpairedObjective
from mmalign.optim import CRITIC
from mmalign.policy import Policy
from mmalign.protocols import AGAINST, Composed, Likelihood, Objective, Reference
from mmalign.references import MovingReference
from mmalign.types import Batch, Trajectory

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 5e-2}
"""How far two computations of one log-prob may lie apart, nats per step, by the weights' dtype."""
CLEARLY_MOVED = 1e-2
"""How far a policy is from its start, nats, that a reference cannot have failed to follow."""
RATIO_OBJECTIVES_NEED = "exact"
WITH_BETA = PairObjective | UnpairedObjective | OPADPO | Anchored | LambdaDPO | Logic
"""Objectives whose beta scales a log-ratio, or a difference of log-probs, of whole outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One line of a preflight check.

    Attributes:
        name: What was checked.
        ok: Whether it holds.
        detail: What was found, in plain words.
    """

    name: str
    ok: bool
    detail: str


class Violation(ValueError):
    """An invariant does not hold: the run would be silently wrong."""


def parts_fit(
    objective: Objective,
    *,
    likelihood: Likelihood,
    reference: Reference | None,
    critic: nn.Module | None,
) -> None:
    """Whether everything the objective needs is supplied.

    Raises:
        ValueError: Naming what is missing and what to do.
    """
    name = type(objective).__name__
    if RATIO_OBJECTIVES_NEED in objective.needs and likelihood == "bound":
        raise ValueError(
            f"{name} takes log-probs for logarithms of probabilities, to exponentiate their ratios "
            "or to compare distributions, and this policy's likelihood is a bound; use "
            "`likelihood: path` for the policy, or an objective such as dpo"
        )
    if "bound" in objective.needs and likelihood == "exact":
        raise ValueError(
            f"{name} reads log-probs as denoising errors, which this policy's are not; use it with "
            "a diffusion or flow policy of `likelihood: elbo`"
        )
    if "reference" in objective.needs and reference is None:
        raise ValueError(f"{name} needs a reference and none was given")
    if objective.needs & AGAINST and getattr(reference, "network", None) is None:
        raise ValueError(
            f"{name} with this KL compares what two networks say, so it needs a reference that "
            "is a network (frozen, lora_off or named_lora), not recorded scores"
        )
    if "values" in objective.needs and critic is None:
        raise ValueError(f"{name} needs a critic and the policy has none")


def odd_beta(objective: Objective, *, symbols: bool) -> str | None:
    """Why a beta looks like that of another kind of loss; None where it does not.

    Sums of nats over an answer call for a beta of 0.001 to 1, means over its steps for one of 1 to
    10: the commonest slip with these objectives, and nothing fails.

    Args:
        objective: What is minimised.
        symbols: Whether the policy's steps are symbols. Log-probs that are means over a latent have
            betas in the hundreds and thousands, and are not looked at.
    """
    if isinstance(objective, Composed):
        found = [odd_beta(inner, symbols=symbols) for inner in objective.inner]
        return next((note for note in found if note is not None), None)
    if not symbols or not isinstance(objective, WITH_BETA):
        return None
    name, beta = type(objective).__name__, objective.beta
    reduction = objective.log_probs if isinstance(objective, Logic) else objective.reduction
    if reduction == "mean" and beta < 0.5:
        return (
            f"{name} compares means over steps, and beta={beta:g} hardly tells them apart; "
            "published values are 2 to 10"
        )
    if reduction == "sum" and beta > 2:
        return (
            f"{name} compares sums over steps, and beta={beta:g} makes every pair all or nothing; "
            "published values are 0.001 to 0.5"
        )
    return None


def meaning_of_beta(objective: Objective, *, likelihood: Likelihood) -> str | None:
    """What a beta multiplies where log-probs are bounds; None where there is nothing to say.

    Code for denoisers differs by a factor of two here, and nothing fails when it is missed.
    """
    if isinstance(objective, Composed):
        found = [meaning_of_beta(inner, likelihood=likelihood) for inner in objective.inner]
        return next((note for note in found if note is not None), None)
    if likelihood != "bound" or not isinstance(objective, PairObjective | UnpairedObjective):
        return None
    if isinstance(objective, PairObjective) and not objective.reads_reference:
        return None
    return (
        f"beta={objective.beta:g} multiplies log-ratios of minus one half of a mean squared error "
        "over latent elements: the factor 1/2 is inside, as in the code of Diffusion-DPO, whose "
        "beta is 5000; beside code without the factor, take twice its beta"
    )


def same_at_start(log_probs: Tensor, batch: Batch, *, dtype: torch.dtype) -> CheckLine:
    """The untrained policy agrees with its reference: KL 0, log 2 for sigmoid DPO."""
    assert batch.reference is not None
    difference = (log_probs.detach() - batch.reference).abs()
    worst = float(torch.where(batch.trajectory.mask, difference, 0.0).max())
    allowed = TOLERANCE[dtype]
    return CheckLine(
        name="policy equals reference at the start",
        ok=worst <= allowed,
        detail=f"largest log-prob difference {worst:.2g} nats (allowed {allowed:g})",
    )


def on_policy(log_probs: Tensor, batch: Batch, *, dtype: torch.dtype) -> CheckLine:
    """What was recorded while sampling is what scoring says: the ratio is 1.

    Step by step in float32. In lower precision a single step says little, since it was computed
    from a cache there and in one piece here; each row's mean is compared.
    """
    trajectory = batch.trajectory
    recorded = batch.behaviour if trajectory.log_probs is None else trajectory.log_probs
    assert recorded is not None
    difference = torch.where(trajectory.mask, (log_probs.detach() - recorded).abs(), 0.0)
    if dtype != torch.float32:
        difference = difference.sum(1) / trajectory.mask.sum(1).clamp(min=1)
    worst = float(difference.max())
    allowed = TOLERANCE[dtype]
    return CheckLine(
        name="ratio is 1 on-policy",
        ok=worst <= allowed,
        detail=f"largest log-ratio {worst:.2g} nats (allowed {allowed:g})",
    )


def depends_on_policy(loss: Tensor) -> CheckLine:
    """The loss of a piece has a graph that ends in something trained."""
    return CheckLine(
        name="gradient reaches the trained parameters",
        ok=loss.requires_grad,
        detail="the loss depends on none of them",
    )


def gradient_arrives(parameters: Mapping[str, nn.Parameter]) -> CheckLine:
    """Something of the network that is trained, its critic apart, receives a gradient."""
    network = {name: p for name, p in parameters.items() if not name.startswith(CRITIC)}
    reached = [
        name for name, p in network.items() if p.grad is not None and bool(torch.any(p.grad != 0))
    ]
    return CheckLine(
        name="gradient reaches the trained parameters",
        ok=bool(reached),
        detail=f"{len(reached)} of {len(network)} trained tensors have a gradient",
    )


def gradient_fits(parameters: Mapping[str, nn.Parameter]) -> CheckLine:
    """Every gradient lies in memory as its parameter does: the fused optimizer reads them so."""
    apart = [
        name
        for name, p in parameters.items()
        if p.grad is not None and p.grad.stride() != p.stride()
    ]
    return CheckLine(
        name="gradients lie in memory as their parameters",
        ok=not apart,
        detail=f"{len(apart)} do not ({', '.join(apart[:3])})",
    )


def has_signal(batch: Batch) -> bool:
    """Whether anything in a credited batch asks the policy to move."""
    if batch.parts:
        return any(has_signal(part) for part in batch.parts)
    if batch.pairs is not None:
        return len(batch.pairs) > 0 and (
            batch.coefficient is None or bool(torch.any(batch.coefficient != 0))
        )
    counted = batch.trajectory.mask & (batch.weight != 0)
    if batch.advantage is None:
        return batch.denominator > 0 and bool(torch.any(counted))
    return bool(torch.any(batch.advantage[counted] != 0))


class ReferenceWatch:
    """Remembers what the reference said of a few rows, to see later whether it has moved.

    A fixed one must not have, and one that follows the policy must.
    """

    def __init__(self, reference: Reference, trajectory: Trajectory) -> None:
        self.reference = reference
        self.rows = trajectory.rows(torch.arange(min(2, len(trajectory))))
        self.before = reference.scores(self.rows).clone()
        self.moves = _moves(reference)
        self.sums = _sums(reference)

    def check(self, policy: Policy) -> CheckLine:
        """What the reference says now, against what it said before and what the policy says."""
        now = self.reference.scores(self.rows)
        with torch.no_grad():
            mine = policy.adapter.scores(policy.model, self.rows).log_probs
        moved = float((now - self.before).abs().max())
        apart = float((mine - now).abs().max())
        detail = f"it moved by {moved:.2g} nats; the policy is {apart:.2g} nats away from it"
        if _moves(self.reference) == self.moves:
            allowed = 1e-6 * max(1.0, float(self.before.abs().max()))
            return CheckLine(name="reference has not moved", ok=moved <= allowed, detail=detail)
        # Where the policy itself is where it was there is nothing to follow.
        stayed = float((mine - self.before).abs().max()) < CLEARLY_MOVED
        followed = stayed or not torch.equal(self.sums, _sums(self.reference))
        return CheckLine(name="reference follows the policy", ok=followed, detail=detail)


def _moves(reference: Reference) -> int:
    return reference.moves if isinstance(reference, MovingReference) else 0


def _sums(reference: Reference) -> Tensor:
    """The sum of each tensor that a moving reference consists of."""
    if not isinstance(reference, MovingReference):
        return torch.zeros(0)
    return torch.stack([value.double().sum() for value in reference.tensors().values()])


def require(line: CheckLine) -> None:
    """Stop the run where an invariant is violated.

    Raises:
        Violation: Saying which and by how much.
    """
    if not line.ok:
        raise Violation(f"invariant violated: {line.name}: {line.detail}")
