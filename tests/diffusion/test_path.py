"""The path adapter on tiny random pipelines of the real classes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from mmalign.critical import Critical
from mmalign.diffusion import DiffusionPolicy, FlowPolicy
from mmalign.lora import LoRA
from mmalign.policy import Policy
from mmalign.sources import Preferences
from mmalign.tinyworld.data import TinyWorld
from mmalign.types import Prompt, Trajectory
from tests.diffusion.tiny import generators

KINDS = ["epsilon", "v_prediction", "one", "flow", "shifted"]


def load(
    folders: dict[str, str], kind: str, *, guidance_scale: float = 3.0, **more: object
) -> Policy:
    spec = FlowPolicy if kind in ("flow", "shifted") else DiffusionPolicy
    return spec(
        model=folders[kind],
        likelihood="path",
        steps=4,
        guidance_scale=guidance_scale,
        **more,  # type: ignore[arg-type]
    ).load()


def sample(policy: Policy, prompts: list[Prompt], *, group_size: int = 2) -> Trajectory:
    return policy.sample(prompts, group_size=group_size, generators=generators(len(prompts), "s"))


def nudge(policy: Policy, *, size: float = 0.02) -> None:
    """Move the network away from where it is."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += size * torch.randn_like(parameter)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_pictures(folders: dict[str, str], prompts: list[Prompt], kind: str) -> None:
    """Two prompts in groups of two; what is stored once per prompt has two entries."""
    trajectory = sample(load(folders, kind), prompts)
    assert trajectory.mask.shape == (4, 4) and trajectory.prompt_of.tolist() == [0, 0, 1, 1]
    assert trajectory.static["states"].shape[0] == 2
    assert trajectory.stepwise["latent"].shape == (4, 4, 4, 8, 8)
    assert trajectory.separable
    assert all(isinstance(o, Image.Image) and o.size == (16, 16) for o in trajectory.outputs)
    torch.testing.assert_close(
        trajectory.stepwise["next"][:, :-1], trajectory.stepwise["latent"][:, 1:]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ratio_is_one_right_after_sampling(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """The noise that was added explains the recorded move: log-prob = mean(-z^2 / 2) - log std - c.

    Sampling and scoring share the move, so the score of what was just sampled must be the density
    of the very noise that was drawn, which the prompt's generator can draw again.
    """
    policy = load(folders, kind)
    trajectory = sample(policy, prompts)
    scores = policy.scores(trajectory)
    family = policy.adapter.family  # type: ignore[attr-defined]
    schedule = family.process.schedule(4)
    redrawn = generators(2, "s")
    for g in redrawn:
        torch.randn(2, 4, 8, 8, generator=g)
    for step in range(4):
        noise = torch.cat([torch.randn(2, 4, 8, 8, generator=g) for g in redrawn])
        if not trajectory.mask[0, step]:
            continue
        at = schedule.level[step].expand(4), schedule.level_next[step].expand(4)
        empty = torch.zeros(4, 4, 8, 8)
        _, std = family.process.move(empty, empty, *at, policy.adapter.settings.denoising.amount)  # type: ignore[attr-defined]
        expected = (-noise.square() / 2).mean((1, 2, 3)) - std.log() - 0.9189385
        torch.testing.assert_close(scores.log_probs[:, step], expected, atol=1e-4, rtol=0)
    assert trajectory.log_probs is not None and trajectory.log_probs.dtype == torch.float32
    assert (scores.log_probs - trajectory.log_probs).exp().sub(1).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "scored"),
    [("epsilon", [1, 1, 1, 1]), ("one", [1, 1, 1, 0]), ("flow", [1, 1, 1, 0])],
)
def test_moves_without_noise_are_not_scored(
    folders: dict[str, str], prompts: list[Prompt], kind: str, scored: list[int]
) -> None:
    """DDIM that ends on alpha = 1 has no variance in its last move; a flow's is below 0.001."""
    policy = load(folders, kind)
    trajectory = sample(policy, prompts)
    assert trajectory.mask[0].int().tolist() == scored
    log_probs = policy.scores(trajectory).log_probs
    assert torch.isfinite(log_probs).all()
    assert (log_probs[~trajectory.mask] == 0).all()
    log_probs.sum().backward()
    assert all(
        torch.isfinite(p.grad).all() for p in policy.model.parameters() if p.grad is not None
    )


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_guidance_is_part_of_the_score(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """A path drawn under guidance scores differently, and worse, without it."""
    guided, plain = load(folders, kind), load(folders, kind, guidance_scale=1.0)
    trajectory = sample(guided, prompts)
    with_guidance = guided.scores(trajectory).log_probs.sum()
    without = plain.scores(trajectory).log_probs.sum()
    assert with_guidance.item() > without.item()


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_a_row_does_not_depend_on_its_neighbours(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """A prompt alone, or second of two, with its own generator: the same path and score."""
    policy = load(folders, kind, rows_per_forward=3)
    both = sample(policy, prompts)
    alone = policy.sample(prompts[1:], group_size=2, generators=generators(2, "s")[1:])
    second = both.rows(torch.tensor([2, 3]))
    for name, value in alone.stepwise.items():
        torch.testing.assert_close(second.stepwise[name], value, atol=1e-4, rtol=1e-4)
    scores = policy.scores(both).log_probs
    torch.testing.assert_close(scores[2:], policy.scores(alone).log_probs, atol=1e-4, rtol=1e-4)
    order = torch.tensor([3, 0, 2, 1])
    shuffled = policy.scores(both.rows(order)).log_probs
    torch.testing.assert_close(shuffled, scores[order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_steps_are_scored_apart_and_padding_is_invisible(
    folders: dict[str, str], prompts: list[Prompt], kind: str
) -> None:
    """Windows of moves score as the whole does; padded moves score 0 and move nothing."""
    policy = load(folders, kind)
    trajectory = sample(policy, prompts)
    scores = policy.scores(trajectory).log_probs
    windows = [policy.scores(trajectory.steps(slice(i, i + 2))).log_probs for i in (0, 2)]
    torch.testing.assert_close(torch.cat(windows, dim=1), scores, atol=1e-5, rtol=1e-5)
    longer = sample(load_steps(folders, kind, steps=5), prompts)
    joined = Trajectory.concatenate([trajectory, longer])
    padded = policy.scores(joined).log_probs[:4]
    torch.testing.assert_close(padded[:, :4], scores, atol=1e-5, rtol=1e-5)
    assert (padded[:, 4:] == 0).all()


def load_steps(folders: dict[str, str], kind: str, *, steps: int) -> Policy:
    spec = FlowPolicy if kind == "flow" else DiffusionPolicy
    return spec(model=folders[kind], likelihood="path", steps=steps, guidance_scale=3.0).load()


def by_hand_kl(policy: Policy, reference: torch.nn.Module, trajectory: Trajectory) -> Tensor:
    """``(log p - log q)`` averaged over fresh draws of the move, by Monte Carlo."""
    family = policy.adapter.family  # type: ignore[attr-defined]
    amount = policy.adapter.settings.denoising.amount  # type: ignore[attr-defined]
    one = trajectory.steps(slice(1, 2))
    at = {k: v[:, 0] for k, v in one.stepwise.items()}
    states = {k: v[trajectory.prompt_of] for k, v in trajectory.static.items()}
    means = []
    with torch.no_grad():
        for model in (policy.model, reference):
            answer = family.predict(model, at["latent"], at["timestep"], states)
            mean, std = family.process.move(
                at["latent"], answer, at["level"], at["level_next"], amount
            )
            means.append(mean)
    wide = std[:, None, None, None]
    p, q = torch.distributions.Normal(means[0], wide), torch.distributions.Normal(means[1], wide)
    draws = p.sample(torch.Size([2000]))
    return (p.log_prob(draws) - q.log_prob(draws)).mean(dim=(0, 2, 3, 4))


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_kl_is_the_closed_form(folders: dict[str, str], prompts: list[Prompt], kind: str) -> None:
    """0 against itself; otherwise what sampling estimates, the step's duration included."""
    policy = load(folders, kind, guidance_scale=1.0)
    trajectory = sample(policy, prompts)
    reference = copy.deepcopy(policy.model)
    same = policy.scores(trajectory, want=frozenset({"kl"}), against=reference).kl
    assert same is not None and same.abs().max().item() == 0
    nudge(policy)
    kl = policy.scores(trajectory, want=frozenset({"kl"}), against=reference).kl
    assert kl is not None and (kl[:, 1] > 1e-5).all()
    estimate = by_hand_kl(policy, reference, trajectory)
    torch.testing.assert_close(kl[:, 1], estimate, rtol=0.1, atol=1e-4)
    want = frozenset({"kl_forward", "log_collision"})
    found = policy.scores(trajectory, want=want, against=reference)
    assert found.kl_forward is not None and torch.equal(found.kl_forward, kl)
    alone = policy.adapter.scores(reference, trajectory).log_probs.detach()
    torch.testing.assert_close(found.reference, alone, rtol=0, atol=0)
    # A move that lands on its mean has a log-density log(2) / 2 above the log of the collision.
    assert found.log_collision is not None and not found.log_collision.requires_grad
    scored = trajectory.mask
    gap = (found.log_probs - found.log_collision)[scored]
    assert (gap <= math.log(2) / 2).all() and (gap > -10).all()
    assert not found.log_collision[~scored].any()


def test_critical_steps_are_of_symbols(folders: dict[str, str]) -> None:
    policy = load(folders, "epsilon")
    pairs = Preferences(data=TinyWorld(task="draw"))
    with pytest.raises(ValueError, match="over symbols"):
        Critical(of=pairs, positive="a", negative="b").build(policy, seed=0)


def test_a_fraction_of_the_moves(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """Half of four moves, the same for the rows of a prompt, the others score 0."""
    policy = load(folders, "epsilon", step_fraction=0.5)
    trajectory = sample(policy, prompts)
    assert trajectory.mask.sum(1).tolist() == [2, 2, 2, 2]
    assert torch.equal(trajectory.mask[0], trajectory.mask[1])
    assert (policy.scores(trajectory).log_probs[~trajectory.mask] == 0).all()
    assert trajectory.log_probs is not None
    assert torch.equal(trajectory.log_probs != 0, trajectory.mask)


def test_features_have_the_declared_size(folders: dict[str, str], prompts: list[Prompt]) -> None:
    """They carry no gradient and differ between moves."""
    for kind in ("epsilon", "flow"):
        policy = load(folders, kind, lora=LoRA(rank=2, alpha=2))
        trajectory = sample(policy, prompts)
        found = policy.scores(trajectory, want=frozenset({"features"})).features
        assert found is not None and found.shape == (4, 4, policy.adapter.feature_size)  # type: ignore[attr-defined]
        assert not found.requires_grad and not torch.equal(found[:, 0], found[:, 1])


def test_a_path_of_recorded_pictures_is_refused(
    folders: dict[str, str], prompts: list[Prompt]
) -> None:
    """The message says what to use instead."""
    policy = load(folders, "epsilon")
    picture = Image.new("RGB", (16, 16))
    with pytest.raises(ValueError, match="likelihood: elbo"):
        policy.adapter.encode(prompts[:1], [[picture]], generators=generators(1))


@pytest.mark.parametrize(
    "spec",
    [
        DiffusionPolicy(model="x", likelihood="path", eta=0.0),
        FlowPolicy(model="x", likelihood="path", noise_level=0.0),
    ],
)
def test_a_path_without_noise_is_refused(
    folders: dict[str, str], spec: DiffusionPolicy | FlowPolicy
) -> None:
    """Before anything is sampled."""
    kind = "flow" if isinstance(spec, FlowPolicy) else "epsilon"
    with pytest.raises(ValueError, match="no likelihood"):
        replace(spec, model=folders[kind]).load()


def test_prompts_that_do_not_fit_are_refused(folders: dict[str, str]) -> None:
    """Too long by one token with the two special ones, and conversations."""
    for kind in ("epsilon", "flow"):
        policy = load(folders, kind)
        fits = Prompt(content=" ".join(["red"] * 16))
        policy.sample([fits], group_size=1, generators=generators(1))
        longer = Prompt(content=" ".join(["red"] * 17))
        with pytest.raises(ValueError, match=r"19 tokens is too long .* reads 18"):
            policy.sample([longer], group_size=1, generators=generators(1))
        turn = Prompt(content=({"role": "user", "content": "a red circle"},))
        with pytest.raises(ValueError, match="plain text"):
            policy.sample([turn], group_size=1, generators=generators(1))


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_pipeline_draws_the_same_path(
    folders: dict[str, str], prompts: list[Prompt], eta: float
) -> None:
    """The pipeline itself, with the same generators, guidance and eta, ends on the same latents."""
    policy = load(folders, "epsilon", eta=eta)
    trajectory = sample(policy, prompts, group_size=1)
    pipe = StableDiffusionPipeline.from_pretrained(folders["epsilon"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        [str(p.content) for p in prompts],
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=eta,
        generator=generators(2, "s"),
        output_type="latent",
    ).images
    torch.testing.assert_close(trajectory.stepwise["next"][:, -1], latents, atol=1e-3, rtol=1e-3)
