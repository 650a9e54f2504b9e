"""From the settings of a run to its trainer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from mmalign import invariants, references, rng
from mmalign.objectives import KTO
from mmalign.policy import Policy, ValueHead
from mmalign.protocols import AGAINST, Contrasting, ReadsReference, Reference
from mmalign.run import PolicySpec, Run
from mmalign.trainer import Trainer
from mmalign.unpaired import UnpairedSource

logger = logging.getLogger(__name__)


def build(run: Run) -> Trainer:
    """Load everything a run names and check that the parts fit.

    Raises:
        ValueError: Something is missing or does not fit; the message says what to do.
    """
    accelerator = Accelerator(
        mixed_precision=run.training.mixed_precision,
        log_with=list(run.training.trackers) or None,
        project_dir=run.output,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
        ],
    )
    torch.manual_seed(rng.seed_of(run.seed, "initialisation"))
    policy = policy_of(run)
    policy.model.to(accelerator.device)
    reference = _reference(run, policy)
    if "values" in run.objective.needs:
        policy.scorer.critic = ValueHead(policy.adapter.feature_size).to(accelerator.device)
    invariants.parts_fit(
        run.objective,
        likelihood=policy.likelihood,
        reference=reference,
        critic=policy.critic,
    )
    symbols = isinstance(policy.adapter, Contrasting)
    if note := invariants.odd_beta(run.objective, symbols=symbols):
        logger.warning("%s", note)
    if not policy.trainable():
        raise ValueError("the policy has no trainable parameter")
    source = run.source.build(policy, seed=run.seed)
    if isinstance(source, ReadsReference):
        source.read(reference)
    if isinstance(run.objective, KTO) and isinstance(source, UnpairedSource):
        counts = {"desirable": source.desirable, "undesirable": source.undesirable}
        if note := run.objective.odd_balance(**counts):
            logger.warning("%s", note)
    return Trainer(
        run=run, policy=policy, reference=reference, source=source, accelerator=accelerator
    )


def policy_of(run: Run) -> Policy:
    """The policy of a run, which knows how another model is loaded as it was."""
    policy = run.policy.load()
    policy.like = lambda path: _like(run.policy, path).load()
    return policy


def _reference(run: Run, policy: Policy) -> Reference | None:
    if isinstance(run.reference, references.NoReference):
        run.reference.check(run.objective)
        return None
    if run.objective.needs & (AGAINST | {"reference"}):
        start = getattr(getattr(run.policy, "lora", None), "path", None)
        return references.chosen(run.reference, policy, start=start).build(policy)
    if run.reference is not None:
        raise ValueError(
            f"a reference is given and {type(run.objective).__name__} with these settings reads "
            "none; remove `reference`, or give the objective its KL term"
        )
    return None


def _like(spec: Any, path: str) -> PolicySpec:
    """The settings of a policy, of another model and without its LoRA."""
    found: PolicySpec = replace(spec, model=path, lora=None)
    return found
