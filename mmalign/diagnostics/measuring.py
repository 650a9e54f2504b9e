"""All measures of one policy, against its reference and the model it started from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmalign import pairing, rng
from mmalign.benchmarks import Measured, Report, mean, share
from mmalign.diagnostics import concentration, likelihood, ranking, sparsity
from mmalign.functional import dpo
from mmalign.objectives.pairwise import total_log_probs
from mmalign.policy import Policy
from mmalign.protocols import Reference
from mmalign.sources import Preferences
from mmalign.types import Output, Preference, Prompt, Trajectory

AGREEMENT = "agreement"
"""The column with the share of people who preferred the chosen output."""
TOP_K = frozenset({"top_k_mass", "top_k_entropy"})
TOKEN = "token"
"""The name of steps that are symbols, of which some are the likeliest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Pairs in memory as a data set.

    Attributes:
        pairs: The pairs.
    """

    pairs: tuple[Preference, ...]

    def preferences(self) -> Sequence[Preference]:
        """The pairs."""
        return self.pairs

    def prompts(self) -> Sequence[Prompt]:
        """Their prompts."""
        return [pair.prompt for pair in self.pairs]

    def demonstrations(self) -> Sequence[tuple[Prompt, Output]]:
        """Their prompts with the chosen outputs."""
        return [(pair.prompt, pair.chosen) for pair in self.pairs]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """Log-probs of pairs, summed over steps, float64 nats; every tensor is ``[N]`` on the CPU.

    Attributes:
        row: Number of the pair in the data.
        s_w: Of the chosen output.
        s_l: Of the rejected one.
        ref_s_w: Under the reference.
        ref_s_l: Likewise.
        n_w: Scored steps.
        n_l: Likewise.
        dropped: Pairs left out because both sides are one and the same.
    """

    row: Tensor
    s_w: Tensor
    s_l: Tensor
    ref_s_w: Tensor
    ref_s_l: Tensor
    n_w: Tensor
    n_l: Tensor
    dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a policy is diagnosed.

    Attributes:
        beta: Of the loss that a pair's difficulty is stated in, and of one idealised accuracy.
        batch_size: Pairs, or prompts, at a time; changes no number.
        seed: Of the outputs that are drawn, and of the noise of a bound.
    """

    beta: float = 0.1
    batch_size: int = 16
    seed: int = 0


def diagnose(
    policy: Policy,
    reference: Reference,
    pairs: Sequence[Preference],
    *,
    start: Policy,
    settings: Settings,
) -> Report:
    """Ranking, displacement, KL, concentration and sparsity of a policy.

    Args:
        policy: As it is now.
        reference: What it was held to.
        pairs: Recorded pairs, best those it was not trained on. One output is drawn for the prompt
            of each; a pair's `AGREEMENT`, if every pair has one, sets its idealised ranking.
        start: The policy as it was before training.
        settings: How.

    Returns:
        A report: one row a pair; categories are the layers, with their update sparsity. Where
        policy, reference and start are one: displacement and KL 0, sparsity 1.

    Raises:
        ValueError: There is no pair, or an agreement is missing or no share.
    """
    if not pairs:
        raise ValueError("there is no pair to diagnose a policy with")
    found = score_pairs(policy, reference, pairs, settings)
    agreement = agreements(pairs)[found.row]
    metrics = {
        **ranking_metrics(found, agreement, beta=settings.beta),
        **displacement_metrics(found),
        **sample_metrics(policy, reference, pairs, start=start, settings=settings),
    }
    layers: dict[str, dict[str, Measured]] = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        each = sparsity.compare_models(start.model, policy.model, dtype=dtype)
        whole = sparsity.total(each)
        metrics[f"sparsity/{name}"] = share(whole.unchanged, whole.total)
        for layer, part in sparsity.by_layer(each).items():
            layers.setdefault(layer, {})[f"sparsity/{name}"] = share(part.unchanged, part.total)
    return Report(
        metrics=metrics,
        categories=layers,
        counts={"pairs with identical sides, left out": found.dropped},
        rows=list(rows_of(found, beta=settings.beta)),
    )


@torch.no_grad()
def score_pairs(
    policy: Policy, reference: Reference, pairs: Sequence[Preference], settings: Settings
) -> PairScores:
    """Log-probs of both sides of pairs, in the order of the data.

    Args:
        policy: Scores the pairs.
        reference: Likewise.
        pairs: Recorded pairs.
        settings: Batch size, and the seed of a bound's noise, which both sides share.
    """
    source = Preferences(
        data=Listed(pairs=tuple(pairs)),
        batch_size=settings.batch_size,
        shuffle=False,
        fixed_noise=True,
    ).build(policy, seed=settings.seed)
    number = -(-len(pairs) // settings.batch_size)
    parts: list[list[Tensor]] = []
    for i, batch in enumerate(
        tqdm(itertools.islice(source, number), desc="scoring", total=number, leave=False)
    ):
        batch = pairing.without_identical(batch)
        assert batch.pairs is not None
        w, r = batch.pairs.unbind(1)
        rows = batch.trajectory
        s = total_log_probs(policy.scores(rows).log_probs, batch)
        ref_s = total_log_probs(reference.scores(rows), batch)
        n = rows.mask.sum(1)
        parts.append(
            [settings.batch_size * i + batch.group[w], s[w], s[r], ref_s[w], ref_s[r], n[w], n[r]]
        )
    row, *numbers = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    s_w, s_l, ref_s_w, ref_s_l, n_w, n_l = (column.double() for column in numbers)
    return PairScores(
        row=row, s_w=s_w, s_l=s_l, ref_s_w=ref_s_w, ref_s_l=ref_s_l, n_w=n_w, n_l=n_l,
        dropped=len(pairs) - len(row),
    )  # fmt: skip


def agreements(pairs: Sequence[Preference]) -> Tensor:
    """``[N]`` share of people who preferred the chosen output; unanimous where no pair says.

    Raises:
        ValueError: Some pairs say and others do not, or it is no number between 0 and 1.
    """
    given = [pair.meta.get(AGREEMENT) for pair in pairs]
    if all(value is None for value in given):
        return torch.full((len(pairs),), ranking.UNANIMOUS, dtype=torch.float64)
    for row, value in enumerate(given):
        if value is None:
            raise ValueError(f"pair {row} has no {AGREEMENT!r} and others have one; fill it in")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(
                f"pair {row}: {AGREEMENT}={value!r} is no share; write a number between 0 and 1"
            )
    low, high = 1 - ranking.UNANIMOUS, ranking.UNANIMOUS
    return torch.tensor(given, dtype=torch.float64).clamp(low, high)


def ranking_metrics(found: PairScores, agreement: Tensor, *, beta: float) -> dict[str, Measured]:
    """Ranking accuracy of the policy and of the reference, and what could have been reached."""
    counts = (found.n_w, found.n_l)
    right = ranking.ranked_right(found.s_w, found.s_l, *counts)
    normalised = ranking.ranked_right(found.s_w, found.s_l, *counts, normalised=True)
    before = ranking.ranked_right(found.ref_s_w, found.ref_s_l, *counts)
    change = likelihood.displacement(found.s_w, found.s_l, found.ref_s_w, found.ref_s_l)
    metrics = {
        "ranking/accuracy": _mean(right),
        "ranking/accuracy_normalised": _mean(normalised),
        "ranking/reference_accuracy": _mean(before),
        "ranking/wrong_pairs_mended": share(float((right & ~before).sum()), float((~before).sum())),
        "rewards/accuracies": _mean(change.margin > 0),
    }
    for value in sorted({*ranking.BETAS, beta}):
        score = ranking.idealised_score(
            found.ref_s_w, found.ref_s_l, beta=value, agreement=agreement
        )
        metrics[f"ranking/idealised_accuracy@beta={value:g}"] = _mean(score > 0)
    hardness = ranking.difficulty(found.ref_s_w, found.ref_s_l)
    for point, value in ranking.quantiles(hardness).items():
        metrics[f"difficulty/quantile_{point:g}"] = Measured(
            value=value if len(hardness) else None, total=len(hardness)
        )
    return metrics


def displacement_metrics(found: PairScores) -> dict[str, Measured]:
    """Where the likelihoods of both sides went, nats an output and nats a step."""
    change = likelihood.displacement(found.s_w, found.s_l, found.ref_s_w, found.ref_s_l)
    return {
        "displacement/chosen": _mean(change.chosen),
        "displacement/rejected": _mean(change.rejected),
        "displacement/margin": _mean(change.margin),
        "displacement/chosen_per_step": _mean(change.chosen / found.n_w.clamp(min=1)),
        "displacement/rejected_per_step": _mean(change.rejected / found.n_l.clamp(min=1)),
        "displacement/chosen_fell": _mean(change.chosen_fell),
        "displacement/both_fell": _mean(change.both_fell),
        "displacement/chosen_fell_while_margin_rose": _mean(change.fell_while_margin_rose),
    }


@torch.no_grad()
def sample_metrics(
    policy: Policy,
    reference: Reference,
    pairs: Sequence[Preference],
    *,
    start: Policy,
    settings: Settings,
) -> dict[str, Measured]:
    """KL to the reference and concentration, on one output drawn for each pair's prompt.

    Nothing where likelihoods are bounds: what was drawn has no log-prob. Where steps are not
    symbols, no concentration and only k1, since log-probs are then means over a latent and k2 and
    k3 of a mean estimate nothing.
    """
    if policy.likelihood != "exact":
        return {}
    kept: dict[str, list[Tensor]] = {}
    for rows in _drawn(policy, pairs, settings):
        symbols = TOKEN in rows.stepwise
        scores = policy.scores(rows, want=TOP_K if symbols else frozenset())
        kl = likelihood.sample_kl(scores.log_probs, reference.scores(rows), rows.mask)
        steps = rows.mask.sum(1)
        for kind in likelihood.KINDS if symbols else ("k1",):
            kept.setdefault(f"kl/{kind}", []).append(kl[kind])
            kept.setdefault(f"kl/{kind}_per_step", []).append(kl[kind] / steps.clamp(min=1))
        kept.setdefault("samples/steps", []).append(steps)
        for name, value in _concentration(scores, rows).items():
            kept.setdefault(name, []).append(value)
    if "top_k/mass" in kept:
        for rows in _drawn(start, pairs, settings):
            scores = start.scores(rows, want=TOP_K)
            for name, value in _concentration(scores, rows).items():
                kept.setdefault(f"{name}_before", []).append(value)
    return {name: _mean(torch.cat(values)) for name, values in sorted(kept.items())}


def rows_of(found: PairScores, *, beta: float) -> Iterator[dict[str, Any]]:
    """One record a pair; ``difficulty`` in nats, ``right_below`` and ``dpo_loss`` at ``beta``."""
    six = (found.s_w, found.s_l, found.ref_s_w, found.ref_s_l, found.n_w, found.n_l)
    hardness = ranking.difficulty(found.ref_s_w, found.ref_s_l)
    columns = {
        "row": found.row,
        "log_prob_chosen": found.s_w,
        "log_prob_rejected": found.s_l,
        "reference_chosen": found.ref_s_w,
        "reference_rejected": found.ref_s_l,
        "steps_chosen": found.n_w.long(),
        "steps_rejected": found.n_l.long(),
        "right": ranking.ranked_right(found.s_w, found.s_l, found.n_w, found.n_l),
        "difficulty": hardness,
        "right_below": ranking.right_below(hardness, beta=beta),
        "dpo_loss": dpo(*six, beta=beta),
    }
    lists = [column.tolist() for column in columns.values()]
    for values in zip(*lists, strict=True):
        yield dict(zip(columns, values, strict=True))


def _drawn(policy: Policy, pairs: Sequence[Preference], settings: Settings) -> Iterator[Trajectory]:
    """One output of each pair's prompt; what is drawn depends on the pair's number alone."""
    size = settings.batch_size
    for start in tqdm(range(0, len(pairs), size), desc="sampling", leave=False):
        part = pairs[start : start + size]
        generators = [rng.generator(settings.seed, "diagnose", start + i) for i in range(len(part))]
        prompts = [pair.prompt for pair in part]
        drawn = policy.sample(prompts, group_size=1, generators=generators)
        yield replace(drawn, log_probs=None)


def _concentration(scores: Any, rows: Trajectory) -> dict[str, Tensor]:
    if scores.top_k_mass is None or scores.top_k_entropy is None:
        return {}
    bits = concentration.top_k_entropy_bits(scores.top_k_mass, scores.top_k_entropy)
    return {
        "top_k/mass": concentration.per_output(scores.top_k_mass, rows.mask),
        "top_k/entropy_bits": concentration.per_output(bits, rows.mask),
    }


def _mean(values: Tensor) -> Measured:
    return mean(values.double().cpu().tolist())
