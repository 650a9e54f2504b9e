"""How often the network is called, on how many rows, and how much memory a long path takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmalign.data.frames import strip
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.log import RunFolder
from mmalign.lora import LoRA
from mmalign.objectives import DPO, GRPO
from mmalign.prompts import frames_of
from mmalign.references import NetworkReference, Recorded, RecordedReference
from mmalign.run import Run, Training
from mmalign.sources import Preferences, Rollouts
from mmalign.types import Output, Preference, Prompt
from tests.diffusion.test_elbo import picture
from tests.diffusion.test_frozen import counted, gone

KINDS = ["epsilon", "flow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Pairs of random pictures."""

    size: int = 4

    def preferences(self) -> Sequence[Preference]:
        words = ("a red circle", "two large blue squares", "a small green triangle", "a circle")
        return [
            Preference(
                prompt=Prompt(content=words[i]), chosen=picture(2 * i), rejected=picture(2 * i + 1)
            )
            for i in range(self.size)
        ]

    def prompts(self) -> Sequence[Prompt]:
        return [pair.prompt for pair in self.preferences()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redness:
    """A reward without ties."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        means = [np.asarray(strip(frames_of(output))).mean((0, 1)) for output in outputs]
        return torch.tensor([float(mean @ [2, -1, -1]) for mean in means])


def run_of(folders: dict[str, str], kind: str, output: Path, **policy: Any) -> Run:
    """Diffusion-DPO with a LoRA: two pairs an update, every pair with its own noise for good."""
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    settings: dict[str, Any] = {"lora": LoRA(rank=2, alpha=2), "steps": 2, **policy}
    return Run(
        policy=spec(model=folders[kind], **settings),
        objective=DPO(beta=500.0),
        source=Preferences(data=Pictures(), batch_size=2, fixed_noise=True),
        training=Training(steps=4, learning_rate=1e-2),
        output=str(output),
    )


@contextmanager
def calls(network: nn.Module) -> Iterator[list[int]]:
    """Rows of every call of a network."""
    found: list[int] = []

    def note(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(len(args[0] if args else kwargs["hidden_states"]))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_one_call_of_policy_and_reference(
    folders: dict[str, str], kind: str, rows: int | None, tmp_path: Path
) -> None:
    """Two pairs are four rows: one call for each, or one a pair; no half without the prompt.

    The reference has no weights of its own: every tensor lies where the policy's lies.
    """
    run = run_of(folders, kind, tmp_path, guidance_scale=3.0)
    run = replace(run, training=replace(run.training, rows_per_microbatch=rows))
    trainer = run.build()
    assert isinstance(trainer.reference, NetworkReference)
    reference = trainer.reference.network
    batches = iter(trainer.source)
    trainer.credited(next(batches))  # A first batch is also kept to see that nothing moves.
    with calls(trainer.policy.model) as policy, calls(reference) as held_to:
        trainer.update(trainer.credited(next(batches)))
    expected = [4] if rows is None else [2, 2]
    assert policy == expected and held_to == expected
    mine = {p.data_ptr() for p in trainer.policy.model.parameters()}
    assert {p.data_ptr() for p in reference.parameters()} <= mine


@pytest.mark.parametrize("kind", KINDS)
def test_no_guidance_asks_no_second_question(folders: dict[str, str], kind: str) -> None:
    """At scale 1 three rows are three rows, in sampling and in scoring; above it six."""
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    for scale, rows in ((1.0, 3), (2.0, 6)):
        policy = spec(model=folders[kind], likelihood="path", steps=2, guidance_scale=scale).load()
        draws = [torch.Generator().manual_seed(0)]
        with calls(policy.model) as found:
            drawn = policy.sample([Prompt(content="a circle")], group_size=3, generators=draws)
            policy.scores(drawn.steps(slice(0, 1)))
        assert found == [rows] * 3


def path_run(folders: dict[str, str], kind: str, output: Path, **training: Any) -> Run:
    """GRPO on denoising moves, the LoRA away from its start so that there is a KL."""
    run = run_of(folders, kind, output, likelihood="path", steps=5, guidance_scale=2.0)
    return replace(
        run,
        objective=GRPO(beta=0.1),
        source=Rollouts(data=Pictures(), reward=Redness(), num_generations=3, batch_size=2),
        training=Training(steps=2, learning_rate=1e-2, **training),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_path_add_up_to_it(folders: dict[str, str], kind: str, tmp_path: Path) -> None:
    """Windows of 1, 2 (and a rest of 1) and 5 moves: one gradient, one loss; rows as expected."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    losses = {}
    for window in (5, 2, 1):
        run = path_run(folders, kind, tmp_path / str(window), steps_per_microbatch=window)
        trainer = run.build()
        batch = trainer.credited(next(iter(trainer.source)))
        # The last move of the flow is too short for noise: it is no call, alone or with others.
        scored = batch.trajectory.mask[0].split(window)
        with calls(trainer.policy.model) as rows:
            losses[window] = trainer.backward(batch, batch.denominator)["loss"][0]
        assert rows == [6 * 2 * int(part.sum()) for part in scored if part.any()]
        gradients = {k: p.grad for k, p in trainer.parameters.items()}
        found[window] = {k: g.clone() for k, g in gradients.items() if g is not None}
        assert found[window].keys() == trainer.parameters.keys()
        assert max(float(g.abs().max()) for g in found[window].values()) > 1e-3
    for window in (2, 1):
        assert losses[window] == pytest.approx(losses[5], rel=1e-4, abs=1e-6)
        for name, gradient in found[window].items():
            torch.testing.assert_close(gradient, found[5][name], rtol=1e-3, atol=1e-5)


def test_scores_without_gradient_are_as_many_rows_as_sampling(
    folders: dict[str, str], tmp_path: Path
) -> None:
    """2 prompts x 3 rows x 5 moves are 30 rows, scored 8 at a time as they were drawn."""
    spec = path_run(folders, "epsilon", tmp_path).policy
    assert isinstance(spec, DiffusionPolicy)
    policy = replace(spec, rows_per_forward=8).load()
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    prompts = Pictures(size=2).prompts()
    with calls(policy.model) as rows, torch.no_grad():
        drawn = policy.sample(prompts, group_size=3, generators=draws)
        assert rows == [12] * 5
        chunked = policy.scores(drawn).log_probs
    assert rows[5:] == [16, 16, 16, 12]
    torch.testing.assert_close(policy.scores(drawn).log_probs.detach(), chunked)


class Held:
    """A tensor kept for the backward pass; the class counts the bytes of those alive."""

    alive = 0
    most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.bytes = tensor, tensor.nbytes
        Held.alive += self.bytes
        Held.most = max(Held.most, Held.alive)

    def __del__(self) -> None:
        Held.alive -= self.bytes


@pytest.mark.parametrize("window", [1, 2])
def test_memory_does_not_grow_with_the_path(
    folders: dict[str, str], window: int, tmp_path: Path
) -> None:
    """What an update keeps for its backward pass, for 4 moves and for 12: the same bytes.

    Without windows 12 moves keep three times what 4 do.
    """
    most = {}
    for moves, steps in ((4, window), (12, window), (4, None), (12, None)):
        run = path_run(folders, "epsilon", tmp_path / "run", steps_per_microbatch=steps)
        assert isinstance(run.policy, DiffusionPolicy)
        trainer = replace(run, policy=replace(run.policy, steps=moves)).build()
        batch = trainer.credited(next(iter(trainer.source)))
        Held.alive = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            trainer.backward(batch, batch.denominator)
        most[moves, steps] = Held.most
    assert most[4, window] == most[12, window] > 10_000
    assert most[12, None] > 2.5 * most[4, None] > 2.5 * most[4, window]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_frozen_is_computed_twice(
    folders: dict[str, str], kind: str, tmp_path: Path
) -> None:
    """Four pairs, two epochs, then a second run: 8 pictures, 4 texts and 8 reference rows in all.

    The losses are those of a run that remembers nothing on disk, in every update.
    """
    run = run_of(folders, kind, tmp_path / "live", latent="sample")
    assert isinstance(run.policy, DiffusionPolicy | FlowPolicy)
    run.build().train()
    expected = RunFolder(tmp_path / "live").read("metrics.jsonl")
    for number, rows in enumerate(({"vae": 8, "text": 4}, {"vae": 0, "text": 0})):
        cached = replace(
            run,
            policy=replace(run.policy, cache=str(tmp_path / "cache")),
            reference=Recorded(folder=str(tmp_path / "scores")),
            output=str(tmp_path / f"cached-{number}"),
        )
        trainer = cached.build()
        assert isinstance(trainer.reference, RecordedReference)
        inner = trainer.reference.inner
        assert isinstance(inner, NetworkReference)
        with counted(trainer.policy) as found, calls(inner.network) as held_to:
            trainer.train()
        assert found == rows
        assert sum(held_to) == rows["vae"]
        lines = RunFolder(tmp_path / f"cached-{number}").read("metrics.jsonl")
        for line, live in zip(lines, expected, strict=True):
            assert line["loss"] == pytest.approx(live["loss"], abs=1e-5)
        assert abs(lines[-1]["loss"] - lines[0]["loss"]) > 1e-3
        del trainer, inner
        gone()
