"""The one training loop, for every objective and every kind of model.

for batch in source:
    reference and behaviour scores, credit            (no gradient)
    for each update on this batch:
        for piece in batch.microbatches(...):
            backward(objective.loss(policy.scores(piece), piece).total / denominator)
        clip; step; log; evaluate; checkpoint
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from mmalign import concentration_watch, distributed, invariants, references
from mmalign.concentration_watch import ConcentrationWatch
from mmalign.ema import AveragedWeights
from mmalign.evaluation import evaluated
from mmalign.interrupt import Interrupted, Wishes
from mmalign.log import RunFolder, Sums, summed
from mmalign.optim import optimizer_of, set_learning_rate
from mmalign.policy import Policy
from mmalign.protocols import AGAINST, ON_REQUEST, Following, Reference, Remembering, Source, Want
from mmalign.run import Run, WeightEMA
from mmalign.scoring import Scoring
from mmalign.speed import Meter, keep_freed_memory, progress_line, useful
from mmalign.state import Progress, restore, save, save_bad_batch
from mmalign.types import Batch, Metric, Scores


class NonFinite(ValueError):
    """The loss or its gradient is not a number; weights and optimizer are as before."""


class Trainer:
    """Trains a policy. Made by `mmalign.build.build`.

    Args:
        run: The settings.
        policy: What is trained.
        reference: What it is held to, or None.
        source: Where batches come from.
        accelerator: Devices, processes, precision.
    """

    def __init__(
        self,
        *,
        run: Run,
        policy: Policy,
        reference: Reference | None,
        source: Source,
        accelerator: Accelerator,
    ) -> None:
        self.run = run
        self.policy = policy
        self.reference = reference
        self.source = source
        self.accelerator = accelerator
        self.objective = run.objective
        self.folder = RunFolder(Path(run.output))
        self.parameters = policy.trainable()
        self.optimizer: Any = accelerator.prepare(optimizer_of(self.parameters, run.training))
        policy.wrapped = accelerator.prepare(policy.scorer)
        policy.autocast = accelerator.autocast
        self.scoring = Scoring(
            run=run, policy=policy, reference=reference, autocast=accelerator.autocast
        )
        self.progress = Progress()
        self.followers = _followers(reference, self.parameters, run.training.ema)
        self.watch: invariants.ReferenceWatch | None = None
        self.concentration = ConcentrationWatch(
            run.training.watch_concentration, likelihood=policy.likelihood
        )
        self.gradient_seen = False
        self.wishes = Wishes()
        self.meter = Meter(
            device=accelerator.device, updates_per_batch=run.training.updates_per_batch
        )

    def train(self, *, resume: bool = False) -> Path:
        """Run to the last step; returns the folder of the aligned model.

        Raises:
            ValueError: The output folder holds another run, or is in use.
            Interrupted: A signal asked to stop; the state is saved.
            NonFinite: Too many non-finite updates in a row.
        """
        if distributed.is_main():
            self.folder.acquire()
        try:
            with self.wishes:
                return self._train(resume=resume)
        finally:
            if isinstance(self.reference, references.RecordedReference):
                self.reference.close()
            self.folder.release()

    def _train(self, *, resume: bool) -> Path:
        if resume:
            restore(self)
        else:
            self._start_folder()
        if self.run.training.trackers:
            self.accelerator.init_trackers("mmalign", config={"output": self.run.output})
        keep_freed_memory(self.accelerator.device)
        if self.progress.step == 0:
            self._evaluate()
        bar = tqdm(
            total=self.run.training.steps,
            initial=self.progress.step,
            desc=Path(self.run.output).name,
            disable=not distributed.is_main(),
        )
        for batch, is_last in self._updates():
            metrics, unit = self._timed_update(batch)
            bar.update()
            bar.set_postfix_str(progress_line(metrics, unit))
            self._after_update(metrics, is_last=is_last)
        bar.close()
        return self._finish()

    def _start_folder(self) -> None:
        from mmalign.config import save_resolved

        if distributed.is_main():
            if (self.folder.path / "metrics.jsonl").exists():
                raise ValueError(
                    f"{self.folder.path} already holds a run; continue it with --resume, or choose "
                    "another `output`"
                )
            # Evaluations of a run that ended before its first update would count as this one's.
            self.folder.forget_after(-1)
            save_resolved(self.run, self.folder.path / "config.yaml")
            note = invariants.meaning_of_beta(self.objective, likelihood=self.policy.likelihood)
            if note is not None:
                self.folder.append("notes.jsonl", {"step": 0, "note": note})
        distributed.barrier()

    def _updates(self) -> Iterator[tuple[Batch, bool]]:
        """The credited batch of each update left to make, and whether it is the run's last."""
        batches = iter(self.source)
        progress, training = self.progress, self.run.training
        while progress.step < training.steps:
            if progress.buffer is None:
                with self.meter.batch():
                    progress.buffer = self.credited(self._drawn(batches))
                progress.updates_done = 0
            batch = progress.buffer
            yield batch, progress.step + 1 == training.steps

    def _drawn(self, batches: Iterator[Batch]) -> Batch:
        """The source's next batch; where it fails (a reward, say), what was learned is saved."""
        before = self.source.state_dict()
        try:
            return next(batches)
        except Exception:
            # Saving takes every process, and the others do not know of the failure.
            if distributed.world_size() == 1 and self.progress.step > 0:
                self.source.load_state_dict(before)
                save(self)
            raise

    @torch.no_grad()
    def credited(self, batch: Batch) -> Batch:
        """The batch with reference, behaviour and value scores, and credit."""
        scored = self.scoring.scored(batch.to(self.accelerator.device))
        if self.reference is not None and self.watch is None:
            self.watch = invariants.ReferenceWatch(self.reference, scored.trajectory)
        batch = self.objective.credit(scored)
        if isinstance(self.objective, Remembering):
            batch, self.progress.memory = self.objective.remember(batch, self.progress.memory)
        return batch

    def _timed_update(self, batch: Batch) -> tuple[dict[str, float], str]:
        """The metrics of an update, timings among them, and the unit of what they count."""
        found = useful(batch.trajectory, self.scoring.prompt_lengths(batch))
        with self.meter.update(found.number):
            metrics = self.update(batch)
        everywhere = self._total(found.number)
        return metrics | self.meter.metrics(found.number, everywhere=everywhere), found.unit

    def update(self, batch: Batch) -> dict[str, float]:
        """One optimizer update on a credited batch; returns the metrics over all processes.

        Raises:
            NonFinite: Too many non-finite updates in a row; nothing was changed by this one.
            invariants.Violation: On the first update, where the run would be silently wrong.
        """
        training = self.run.training
        rate = set_learning_rate(self.optimizer, self.progress.step, training)
        denominator = self._total(batch.denominator)
        self.optimizer.zero_grad()
        sums = self.backward(batch, denominator)
        norm = self._gradient_norm()
        metrics = self._reduced(sums, batch)
        metrics["loss"] = self._total(sums["loss"][0]) / max(denominator, 1e-12)
        metrics["grad_norm"] = norm
        metrics["learning_rate"] = rate
        finite = math.isfinite(norm) and math.isfinite(metrics["loss"])
        if not finite:
            metrics["skipped/non_finite"] = 1.0
        elif denominator == 0 or norm == 0:
            # Nothing asks the policy to move, so it must not move on the momentum of before.
            metrics["skipped/no_signal"] = 1.0
        else:
            self.progress.bad_updates = 0
            self.optimizer.step()
        self.optimizer.zero_grad()
        if not finite:
            self._bad_update(batch)
        return metrics

    def asked(self, step: int) -> tuple[Want, nn.Module | None]:
        """What an update wants beside log-probs, and the network that this compares with."""
        wanted = self.run.objective.needs & (ON_REQUEST | {"features"})
        want = wanted | self.concentration.want(step)
        return want, getattr(self.reference, "network", None) if want & AGAINST else None

    def backward(self, batch: Batch, denominator: float) -> Sums:
        """Accumulate the gradient of a credited batch, piece by piece; returns summed metrics."""
        objective, pieces = self.objective, self.scoring.pieces(batch)
        # Gradients are averaged over processes, while the loss is a sum over all their rows.
        scale = distributed.world_size() / max(denominator, 1e-12)
        step = self.progress.step
        want, against = self.asked(step)
        found: list[dict[str, Metric]] = []
        for number, piece in enumerate(pieces):
            is_last = number == len(pieces) - 1
            alone = nullcontext() if is_last else self.accelerator.no_sync(self.policy.wrapped)
            with alone:
                scores = self.policy.scores(piece.trajectory, want=want, against=against)
                if step == 0 and self.progress.updates_done == 0:
                    self._check_start(scores, piece)
                loss = objective.loss(scores, piece)
                invariants.require(invariants.depends_on_policy(loss.total))
                self.accelerator.backward(loss.total * scale)
            measured = self.concentration.metrics(scores, piece, step)
            one = torch.tensor(1.0)
            found.append({**loss.metrics, **measured, "loss": (loss.total.detach(), one)})
        if not self.gradient_seen and invariants.has_signal(batch):
            invariants.require(invariants.gradient_arrives(self.parameters))
            invariants.require(invariants.gradient_fits(self.parameters))
            self.gradient_seen = True
        return summed(found)

    @property
    def precision(self) -> torch.dtype:
        """The lowest precision that scores are computed in."""
        if self.run.training.mixed_precision != "no":
            return torch.bfloat16
        return next(self.policy.model.parameters()).dtype

    def _check_start(self, scores: Scores, piece: Batch) -> None:
        found, dtype = scores.log_probs, self.precision
        if scores.reference is not None:
            piece = replace(piece, reference=scores.reference)
        if piece.reference is not None and getattr(self.reference, "starts_at_policy", False):
            invariants.require(invariants.same_at_start(found, piece, dtype=dtype))
        if piece.behaviour is not None or piece.trajectory.log_probs is not None:
            invariants.require(invariants.on_policy(found, piece, dtype=dtype))

    def _gradient_norm(self) -> float:
        limit = self.run.training.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(
            list(self.parameters.values()), float("inf") if limit is None else limit
        )
        return float(norm)

    def _reduced(self, sums: Sums, batch: Batch) -> dict[str, float]:
        """Means over all processes of every (sum, count), and the summed counters."""
        merged = {**{k: v for k, v in sums.items() if k != "loss"}, **batch.metrics}
        metrics = {}
        for name in sorted(merged):
            total, count = merged[name]
            total, count = self._total(total), self._total(count)
            if count > 0:
                metrics[name] = total / count
        for name in sorted(batch.counters):
            metrics[f"counts/{name}"] = self._total(batch.counters[name])
        return metrics

    def _total(self, value: float) -> float:
        return distributed.total(value, device=self.accelerator.device)

    def _bad_update(self, batch: Batch) -> None:
        self.progress.bad_updates += 1
        where = save_bad_batch(self, batch)
        if self.progress.bad_updates >= self.run.training.max_bad_updates:
            save(self)
            raise NonFinite(
                f"update {self.progress.step + 1}: the loss or its gradient is not finite "
                f"({self.progress.bad_updates} in a row). The weights are those of the update "
                f"before; the batch is saved in {where}. Lower the learning rate, or look for "
                "extreme log-probs or rewards in that batch."
            )

    def _after_update(self, metrics: dict[str, float], *, is_last: bool) -> None:
        progress, training = self.progress, self.run.training
        progress.step += 1
        for follower in self.followers.values():
            follower.after_update(progress.step)
        progress.updates_done += 1
        if progress.updates_done >= training.updates_per_batch:
            progress.buffer = None
        measured = concentration_watch.MASS in metrics
        due = progress.step % training.log_every == 0 or measured or is_last
        if distributed.is_main() and due:
            self.folder.append("metrics.jsonl", {"step": progress.step, **metrics})
        if distributed.is_main() and measured:
            self.concentration.warn(self.folder)
        if training.trackers:
            self.accelerator.log(metrics, step=progress.step)
        every = self.run.evaluation.every if self.run.evaluation else None
        if is_last or (every is not None and progress.step % every == 0):
            self._evaluate()
        at = training.checkpoint_every
        # A signal may reach the processes at different updates; they stop at the same one.
        stopping = self._total(float(self.wishes.stopping)) > 0
        if is_last or stopping or (at is not None and progress.step % at == 0):
            save(self)
        if stopping and not is_last:
            raise Interrupted(
                f"stopped after update {progress.step} of {training.steps}; the state is saved in "
                f"{self.folder.path}, continue with --resume"
            )

    def _evaluate(self) -> None:
        if self.run.evaluation is None:
            return
        with self._as_judged():
            evaluated(
                self.policy,
                self.run.evaluation,
                self.folder,
                step=self.progress.step,
                seed=self.run.seed,
            )

    def _as_judged(self) -> AbstractContextManager[None]:
        """Within, the policy has the weights that are judged and saved."""
        average = self.followers.get("ema")
        return average.used() if isinstance(average, AveragedWeights) else nullcontext()

    def _finish(self) -> Path:
        if self.watch is not None:
            invariants.require(self.watch.check(self.policy))
        target = self.folder.path / "model"
        if distributed.is_main():
            with self._as_judged():
                self.policy.save(target)
        if self.run.training.trackers:
            self.accelerator.end_training()
        distributed.barrier()
        return target


def _followers(
    reference: Reference | None, parameters: Mapping[str, nn.Parameter], ema: WeightEMA | None
) -> dict[str, Following]:
    """What follows the policy's weights, by the name of its part in a checkpoint."""
    found: dict[str, Following] = {}
    if isinstance(reference, Following):
        found["reference"] = reference
    if ema is not None:
        found["ema"] = AveragedWeights(parameters, ema)
    return found
